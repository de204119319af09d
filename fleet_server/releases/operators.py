"""The operators of ONNX that a model may use.

The devices' runtime executes each of them on a processor, and it computes numbers from numbers.
Left out are those that draw random numbers (golden vectors could not hold), decode images or
work on text (inputs are numbers), training losses, and what has no kernel there. Functions that a
model brings along are expanded before they run, and count as what they are made of.
"""

from collections.abc import Iterable

import onnx

from fleet_server.releases.states import Refusal

ONNX = frozenset(
    """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow
    Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat ConcatFromSequence Constant
    ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT DeformConv
    DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp
    Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow
    HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul
    MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix
    Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement
    OptionalHasElement Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization
    RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign
    RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape Shrink
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split SplitToSequence
    Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu
    Unique Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905
)

ONNX_ML = frozenset(
    """
    ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder LinearClassifier
    LinearRegressor Normalizer OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble
    TreeEnsembleClassifier TreeEnsembleRegressor
    """.split()  # noqa: SIM905
)

ALLOWED = {"": ONNX, "ai.onnx": ONNX, "ai.onnx.ml": ONNX_ML}


def check(nodes: Iterable[onnx.NodeProto], functions: Iterable[onnx.FunctionProto]) -> None:
    """Check every operator of a model.

    Args:
        nodes: all of them, those of subgraphs and functions included.
        functions: the model's own.

    Raises:
        Refusal: ``operator_not_allowed``, naming the operator.
    """
    local = {(item.domain, item.name) for item in functions if item.domain not in ALLOWED}
    for node in nodes:
        known = node.op_type in ALLOWED.get(node.domain, ())
        if not known and (node.domain, node.op_type) not in local:
            raise Refusal(
                "examination",
                "operator_not_allowed",
                f"The model uses the operator {_name(node)!r}, which devices do not run.",
                "Export it with ONNX's own operators, without random ones and those for text; "
                "docs/reference/operators.md lists those that are allowed.",
            )


def _name(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}"[:120] if node.domain else node.op_type[:120]
