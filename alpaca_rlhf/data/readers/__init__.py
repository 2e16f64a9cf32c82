"""Reading rows of files: their format, the records they become, and the way out again."""

from alpaca_rlhf.data.readers.columns import RowKind, column_names
from alpaca_rlhf.data.readers.comparisons import read_pairs
from alpaca_rlhf.data.readers.conversations import dialogue
from alpaca_rlhf.data.readers.detection import (
    FORMATS,
    DetectedFormat,
    Format,
    FormatName,
    Kind,
    detect_format,
)
from alpaca_rlhf.data.readers.exporting import Exportable, Target, export, exportable
from alpaca_rlhf.data.readers.formats import (
    read_instructions,
    read_own_tasks,
    read_prompts,
    write_instructions,
)
from alpaca_rlhf.data.readers.importing import (
    BrokenRowPolicy,
    Imported,
    RowTally,
    import_rows,
    one_kind,
    refuse_broken,
)
from alpaca_rlhf.data.readers.problems import BadRow, LeftOut, Reason
from alpaca_rlhf.data.readers.ranked import holds_rankings, ranked_prompts, read_rankings
from alpaca_rlhf.data.readers.read_limit import ReadLimit
from alpaca_rlhf.data.readers.reading import (
    FileAccount,
    Reading,
    columns_text,
    omitted_text,
    reasons_text,
    refuse_absent_columns,
)
from alpaca_rlhf.data.readers.rows import Rows, open_rows
from alpaca_rlhf.data.readers.seeds import SHIPPED, read_seeds, seed_file

__all__ = [
    "FORMATS",
    "SHIPPED",
    "BadRow",
    "BrokenRowPolicy",
    "DetectedFormat",
    "Exportable",
    "FileAccount",
    "Format",
    "FormatName",
    "Imported",
    "Kind",
    "LeftOut",
    "ReadLimit",
    "Reading",
    "Reason",
    "RowKind",
    "RowTally",
    "Rows",
    "Target",
    "column_names",
    "columns_text",
    "detect_format",
    "dialogue",
    "export",
    "exportable",
    "holds_rankings",
    "import_rows",
    "omitted_text",
    "one_kind",
    "open_rows",
    "ranked_prompts",
    "read_instructions",
    "read_own_tasks",
    "read_pairs",
    "read_prompts",
    "read_rankings",
    "read_seeds",
    "reasons_text",
    "refuse_absent_columns",
    "refuse_broken",
    "seed_file",
    "write_instructions",
]
