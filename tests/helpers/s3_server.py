"""moto's S3 server with an atomic conditional PUT, as S3 has.

moto looks for the object and then stores it, so that two large PUTs at once can both find none.
"""

from __future__ import annotations

import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

_put_object = S3Response.put_object
_one_at_a_time = threading.Lock()


def _put_object_alone(response: S3Response) -> Any:
    with _one_at_a_time:
        return _put_object(response)


if __name__ == "__main__":
    S3Response.put_object = _put_object_alone
    main()
