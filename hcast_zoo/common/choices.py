"""Choices of the command line's options; this module imports nothing, so that --help needs no torch."""

DEFAULT_MODEL = "hcast_lite.in1k"  # packaged weights for photographs
ADAPTED_MODEL = "hcast_small.emoji_art"  # for `adapt`: the labels of DEFAULT_MODEL do not depend on segment features
DECODERS = ("best_path", "top_down", "independent")  # see taxonomy.decode.decode
FEEDBACK = ("target", "path", "entropy", "agreement")  # see adaptation.adapt.adapt
PARTS = ("sheet", "overlays", "labels", "arrays")  # see segments.report.write_files
ENGINES = ("torch", "onnxruntime", "openvino", "auto")  # see inference.engines
PRECISIONS = ("fp32", "bf16", "int8")
EXPORT_FORMATS = ("onnx", "pt2")  # see sharing.export.export
TABLE_LAYOUTS = ("flat", "darwin-core", "timelapse")  # see inference.tables
TABLE_SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".xlsx")
BOX_SHAPES = ("square", "rectangle")  # see data.boxes
SORT_AS = ("link", "copy")  # see inference.sorting
FREEZE = ("none", "stem", "encoder")  # see training.settings
SAMPLERS = ("natural", "sqrt", "balanced")  # see training.imbalance
CLASS_WEIGHTS = ("none", "sqrt", "balanced")
TRACKERS = ("tensorboard", "wandb", "mlflow")  # of accelerate; see training.run_log
SHELLS = ("bash", "zsh", "tcsh")  # see cli.doctor.completion
