"""A local folder and an S3 bucket behind one interface, so that one test checks both."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Store(Protocol):
    """A place for files: a local folder, or a bucket."""

    @property
    def uri(self) -> str: ...

    def put(self, name: str, data: bytes) -> str:
        """Write a file and return its URI."""

    def remove(self, name: str) -> None: ...


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, named by a file:// URI."""

    path: Path

    @property
    def uri(self) -> str:
        return f"file://{self.path}"

    def put(self, name: str, data: bytes) -> str:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return f"file://{path}"

    def remove(self, name: str) -> None:
        (self.path / name).unlink()


@dataclass(frozen=True)
class Bucket:
    """A bucket of an S3 server, by way of a client of boto3."""

    name: str
    client: Any

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, name: str, data: bytes) -> str:
        self.client.put_object(Bucket=self.name, Key=name, Body=data)
        return f"s3://{self.name}/{name}"

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=name)


def check_credentials_after(endpoint: str, requests: str) -> None:
    """Make the server check credentials, and refuse ours, after so many requests; inf: never."""
    headers = {"Content-Type": "text/plain"}
    url = f"{endpoint}/moto-api/reset-auth"
    urllib.request.urlopen(urllib.request.Request(url, requests.encode(), headers)).close()
