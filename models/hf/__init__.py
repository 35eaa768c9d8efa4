"""To Hugging Face and back: a run as a folder that `from_pretrained` opens, and the inverse.

docs/export.md says which class each mix becomes, and why. Both ways need transformers, which the
other commands do without: pip install -c constraints.txt -e '.[hf]'.
"""

from models.hf.convert import export, export_run, import_folder, load_pretrained
from models.hf.tokenizer import byte_tokenizer

__all__ = ["byte_tokenizer", "export", "export_run", "import_folder", "load_pretrained"]
