"""A model of archladder for `trust_remote_code=True`, where archladder is installed."""

try:
    from models.hf import wrapper
except ImportError as error:
    raise ImportError(
        "This model needs archladder: in a clone of it run pip install -e '.[hf]' for the Python "
        "that opens the folder, and let no other package named models stand before it."
    ) from error


class ArchladderConfig(wrapper.ArchladderConfig):
    pass


class ArchladderForCausalLM(wrapper.ArchladderForCausalLM):
    config_class = ArchladderConfig
