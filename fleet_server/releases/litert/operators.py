"""Which of TFLite's operators a model may use: built-in ones that compute from their inputs alone.

Left out are those that keep a state between runs, draw random numbers, call foreign code or are
delegates'; a device has no code for custom operators.
"""

from fleet_server.releases.states import Refusal

CUSTOM = 32
"""The number that stands for an operator of somebody's own."""

_STATEFUL = {
    15: "LSH_PROJECTION",
    16: "LSTM",
    24: "RNN",
    27: "SVDF",
    129: "CALL_ONCE",
    35: "UNIDIRECTIONAL_SEQUENCE_RNN",
    44: "UNIDIRECTIONAL_SEQUENCE_LSTM",
    46: "BIDIRECTIONAL_SEQUENCE_RNN",
    52: "BIDIRECTIONAL_SEQUENCE_LSTM",
    142: "VAR_HANDLE",
    143: "READ_VARIABLE",
    144: "ASSIGN_VARIABLE",
    136: "HASHTABLE",
    137: "HASHTABLE_FIND",
    138: "HASHTABLE_IMPORT",
}

_TABLE = """
    0:ADD 1:AVERAGE_POOL_2D 2:CONCATENATION 3:CONV_2D 4:DEPTHWISE_CONV_2D 5:DEPTH_TO_SPACE
    6:DEQUANTIZE 7:EMBEDDING_LOOKUP 8:FLOOR 9:FULLY_CONNECTED 11:L2_NORMALIZATION 12:L2_POOL_2D
    13:LOCAL_RESPONSE_NORMALIZATION 14:LOGISTIC 17:MAX_POOL_2D 18:MUL 19:RELU 20:RELU_N1_TO_1
    21:RELU6 22:RESHAPE 23:RESIZE_BILINEAR 25:SOFTMAX 26:SPACE_TO_DEPTH 28:TANH 34:PAD 36:GATHER
    37:BATCH_TO_SPACE_ND 38:SPACE_TO_BATCH_ND 39:TRANSPOSE 40:MEAN 41:SUB 42:DIV 43:SQUEEZE
    45:STRIDED_SLICE 47:EXP 48:TOPK_V2 49:SPLIT 50:LOG_SOFTMAX 53:CAST 54:PRELU 55:MAXIMUM
    56:ARG_MAX 57:MINIMUM 58:LESS 59:NEG 60:PADV2 61:GREATER 62:GREATER_EQUAL 63:LESS_EQUAL
    64:SELECT 65:SLICE 66:SIN 67:TRANSPOSE_CONV 68:SPARSE_TO_DENSE 69:TILE 70:EXPAND_DIMS 71:EQUAL
    72:NOT_EQUAL 73:LOG 74:SUM 75:SQRT 76:RSQRT 77:SHAPE 78:POW 79:ARG_MIN 80:FAKE_QUANT
    81:REDUCE_PROD 82:REDUCE_MAX 83:PACK 84:LOGICAL_OR 85:ONE_HOT 86:LOGICAL_AND 87:LOGICAL_NOT
    88:UNPACK 89:REDUCE_MIN 90:FLOOR_DIV 91:REDUCE_ANY 92:SQUARE 93:ZEROS_LIKE 94:FILL
    95:FLOOR_MOD 96:RANGE 97:RESIZE_NEAREST_NEIGHBOR 98:LEAKY_RELU 99:SQUARED_DIFFERENCE
    100:MIRROR_PAD 101:ABS 102:SPLIT_V 103:UNIQUE 104:CEIL 105:REVERSE_V2 106:ADD_N 107:GATHER_ND
    108:COS 109:WHERE 110:RANK 111:ELU 112:REVERSE_SEQUENCE 113:MATRIX_DIAG 114:QUANTIZE
    115:MATRIX_SET_DIAG 116:ROUND 117:HARD_SWISH 118:IF 119:WHILE 120:NON_MAX_SUPPRESSION_V4
    121:NON_MAX_SUPPRESSION_V5 122:SCATTER_ND 123:SELECT_V2 124:DENSIFY 125:SEGMENT_SUM
    126:BATCH_MATMUL 128:CUMSUM 130:BROADCAST_TO 131:RFFT2D 132:CONV_3D 133:IMAG 134:REAL
    135:COMPLEX_ABS 140:REDUCE_ALL 141:CONV_3D_TRANSPOSE 145:BROADCAST_ARGS 147:BUCKETIZE 150:GELU
    151:DYNAMIC_UPDATE_SLICE 152:RELU_0_TO_1 153:UNSORTED_SEGMENT_PROD 154:UNSORTED_SEGMENT_MAX
    155:UNSORTED_SEGMENT_SUM 156:ATAN2 157:UNSORTED_SEGMENT_MIN 158:SIGN 159:BITCAST
    160:BITWISE_XOR 161:RIGHT_SHIFT 205:REDUCE_WINDOW
"""

NAMES = {int(number): name for number, name in (item.split(":") for item in _TABLE.split())}
"""Number in TFLite's schema → name, of all that are allowed."""


def check(numbers: set[int]) -> None:
    """Judge the operators of a model.

    Raises:
        Refusal: ``stateful`` or ``foreign_operators``.
    """
    for number in sorted(numbers - NAMES.keys()):
        if number in _STATEFUL:
            raise stateful(f"the operator {_STATEFUL[number]}")
        raise Refusal(
            "examination",
            "foreign_operators",
            f"The model uses operator {number} of TFLite's schema, which devices do not run.",
            "Export it with TFLITE_BUILTINS only, in a version that LiteRT 2.3 knows.",
        )


def custom(name: str) -> Refusal:
    """Return the refusal of an operator that is not built in."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name[:80])
    return Refusal(
        "examination",
        "custom_operator",
        f"The model uses the custom operator {shown!r}.",
        "Export it with built-in operators only; no device has code for others.",
    )


def stateful(what: str) -> Refusal:
    """Return the refusal of a model that remembers."""
    return Refusal(
        "examination",
        "stateful",
        f"The model keeps a state between runs ({what}): answers depend on those before.",
        "Make the state an input and an output of the model.",
    )
