"""Multi-scale deformable attention in ONNX: the node's name, and a local function that defines it.

An exported file carries `FUNCTION`, so that a runtime with no kernel for the node still runs it.
One function serves any number of levels: it gathers the four neighbours of every point, as rows of
D channels, and weights them with a matrix product. GridSample would need a function for each number
of levels, and TensorRT's parser distinguishes functions by name alone; in a Loop, its builder fails
on GridSample. TensorRT is also known to compute GridSample-form deformable attention wrongly.
"""

from __future__ import annotations

DOMAIN = "promptiml"
NAME = "MSDeformAttn"
VERSION = 1
OPSET = 18

# Letters are those of `engine.operator.torch_op`; `sizes` (L, 2) int64 holds (H, W) of each level.
# Values for each point have the shape (N, Q, M, L, P), values for each level (L, 1).
FUNCTION = f"""
<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>
{NAME} (value, sizes, locations, weights) => (out)
{{
    zero = Constant <value = float {{0}}> ()
    half = Constant <value = float {{0.5}}> ()
    one = Constant <value = float {{1}}> ()
    int_0 = Constant <value_int = 0> ()
    int_1 = Constant <value_int = 1> ()
    ints_0 = Constant <value_ints = [0]> ()
    ints_1 = Constant <value_ints = [1]> ()
    ints_2 = Constant <value_ints = [2]> ()
    rest = Constant <value_ints = [-1]> ()
    n = Shape <start = 0, end = 1> (value)
    s = Shape <start = 1, end = 2> (value)
    m = Shape <start = 2, end = 3> (value)
    d = Shape <start = 3, end = 4> (value)
    q = Shape <start = 1, end = 2> (locations)

    height = Slice (sizes, ints_0, ints_1, ints_1)
    width = Slice (sizes, ints_1, ints_2, ints_1)
    area = Mul (height, width)
    end = CumSum (area, int_0)
    start = Sub (end, area)
    start_f = Cast <to = 1> (start)
    height_f = Cast <to = 1> (height)
    width_f = Cast <to = 1> (width)
    bottom = Sub (height_f, one)
    right = Sub (width_f, one)

    # The point's position in cells, and the cells around it.
    x_01 = Gather <axis = -1> (locations, int_0)
    y_01 = Gather <axis = -1> (locations, int_1)
    x_edge = Mul (x_01, width_f)
    y_edge = Mul (y_01, height_f)
    x = Sub (x_edge, half)
    y = Sub (y_edge, half)
    x_lo = Floor (x)
    y_lo = Floor (y)
    x_hi = Add (x_lo, one)
    y_hi = Add (y_lo, one)
    share_x_hi = Sub (x, x_lo)
    share_y_hi = Sub (y, y_lo)
    share_x_lo = Sub (one, share_x_hi)
    share_y_lo = Sub (one, share_y_hi)

    # Cells outside the map have weight 0, and the nearest cell inside is gathered for them.
    x_lo_most = Min (x_lo, right)
    x_hi_most = Min (x_hi, right)
    y_lo_most = Min (y_lo, bottom)
    y_hi_most = Min (y_hi, bottom)
    x_lo_in = Max (x_lo_most, zero)
    x_hi_in = Max (x_hi_most, zero)
    y_lo_in = Max (y_lo_most, zero)
    y_hi_in = Max (y_hi_most, zero)
    x_lo_inside = Equal (x_lo, x_lo_in)
    x_hi_inside = Equal (x_hi, x_hi_in)
    y_lo_inside = Equal (y_lo, y_lo_in)
    y_hi_inside = Equal (y_hi, y_hi_in)
    weight_x_lo = Where (x_lo_inside, share_x_lo, zero)
    weight_x_hi = Where (x_hi_inside, share_x_hi, zero)
    weight_y_lo = Where (y_lo_inside, share_y_lo, zero)
    weight_y_hi = Where (y_hi_inside, share_y_hi, zero)

    weight_lo = Mul (weights, weight_y_lo)
    weight_hi = Mul (weights, weight_y_hi)
    weight_lo_lo = Mul (weight_lo, weight_x_lo)
    weight_lo_hi = Mul (weight_lo, weight_x_hi)
    weight_hi_lo = Mul (weight_hi, weight_x_lo)
    weight_hi_hi = Mul (weight_hi, weight_x_hi)
    weight = Concat <axis = -1> (weight_lo_lo, weight_lo_hi, weight_hi_lo, weight_hi_hi)
    weight_shape = Concat <axis = 0> (n, q, m, ints_1, rest)
    weight_row = Reshape (weight, weight_shape)

    # The index of each cell among all S, then of its row among the N * S * M rows of D channels.
    row_lo = Mul (y_lo_in, width_f)
    row_hi = Mul (y_hi_in, width_f)
    row_lo_start = Add (row_lo, start_f)
    row_hi_start = Add (row_hi, start_f)
    cell_lo_lo = Add (row_lo_start, x_lo_in)
    cell_lo_hi = Add (row_lo_start, x_hi_in)
    cell_hi_lo = Add (row_hi_start, x_lo_in)
    cell_hi_hi = Add (row_hi_start, x_hi_in)
    cells_f = Concat <axis = -1> (cell_lo_lo, cell_lo_hi, cell_hi_lo, cell_hi_hi)
    cells = Cast <to = 7> (cells_f)
    cells_shape = Concat <axis = 0> (n, q, m, rest)
    cells_NQMK = Reshape (cells, cells_shape)
    cells_first = Mul (cells_NQMK, m)
    n_scalar = Squeeze (n)
    m_scalar = Squeeze (m)
    image = Range (int_0, n_scalar, int_1)
    head = Range (int_0, m_scalar, int_1)
    rows_an_image = Mul (s, m)
    image_first = Mul (image, rows_an_image)
    image_axes = Constant <value_ints = [1, 2, 3]> ()
    image_N111 = Unsqueeze (image_first, image_axes)
    head_M1 = Unsqueeze (head, ints_1)
    first_N1M1 = Add (image_N111, head_M1)
    rows = Add (cells_first, first_N1M1)

    table_shape = Concat <axis = 0> (rest, d)
    table = Reshape (value, table_shape)
    neighbours = Gather <axis = 0> (table, rows)
    sum = MatMul (weight_row, neighbours)
    channels = Mul (m, d)
    out_shape = Concat <axis = 0> (n, q, channels)
    out = Reshape (sum, out_shape)
}}
"""
