"""conf/cluster: what a size is given, and one sentence for what cannot be."""

import pytest
import yaml

from ablations.resolve import resolve
from models.errors import SettingError
from sweeps.cluster import Local, Slurm, check_ranks, parse, restore, to_dict
from sweeps.compose import CONF
from tests.ablations.conftest import settings


def slurm(**changed):
    content = yaml.safe_load((CONF / "cluster" / "slurm.yaml").read_text())
    return {**content, **changed}


def test_a_size_is_given_its_own_and_else_what_all_are_given():
    cluster = parse(slurm(partition="gpu", sizes={"1b": {"gpus": 8, "setup": ["module load x"]}}))
    assert isinstance(cluster, Slurm)
    big, small = cluster.shape("1b"), cluster.shape("50k")
    assert (big.gpus, big.ranks, big.partition, big.setup) == (8, 8, "gpu", ("module load x",))
    assert (small.gpus, small.partition, small.setup) == (1, "gpu", ())


@pytest.mark.parametrize("option", ["local", "slurm"])
def test_what_is_recorded_to_retry_by_reads_back(option):
    content = yaml.safe_load((CONF / "cluster" / f"{option}.yaml").read_text())
    cluster = parse(content)
    assert isinstance(cluster, Local if option == "local" else Slurm)
    assert restore(yaml.safe_load(yaml.safe_dump(to_dict(cluster)))) == cluster


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"launcher": "pbs"}, "cluster.launcher=pbs is not known; valid: local, slurm"),
        ({"launcher": "local"}, "is not a setting"),
        ({"minutes": 0}, "cluster.minutes=0 must be at least 1"),
        ({"gpus": "many"}, "cluster.gpus='many' must be a whole number"),
        ({"partitions": "gpu"}, "cluster.partitions is not a setting; nearest"),
        ({"sizes": {"1b": {"gpu": 8}}}, "cluster.sizes.1b.gpu is not a setting"),
        ({"sizes": {"1b": 8}}, "must be groups"),
        ({"sizes": {"1B": {"gpus": 8}}}, "cluster.sizes=1B is not known; valid: 100k, 100m, "),
        ({"sizes": {"1b": {"nodes": 0}}}, "cluster.sizes.1b.nodes=0 must be at least 1"),
        ({"setup": "module load cuda"}, "must be a list"),
        ({"memory_gb": -1}, "cluster.memory_gb=-1"),
        ({"poll_seconds": 0}, "cluster.poll_seconds=0"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(changed, words):
    with pytest.raises(SettingError) as error:
        parse(slurm(**changed))
    assert words in str(error.value)
    assert str(error.value).count("\n") == 0


def test_more_ranks_than_sequences_are_refused():
    spec = resolve(settings())
    check_ranks(parse(slurm(gpus=1)), [spec])
    rows = spec.recipe.batch_instances
    with pytest.raises(
        SettingError,
        match=rf"{rows + 1} ranks .* batch of {rows} sequences; .* {rows} ranks or fewer",
    ):
        check_ranks(parse(slurm(gpus=rows + 1)), [spec])
    alone = resolve(settings(resources__devices=1))
    with pytest.raises(SettingError, match=r"resources\.devices=1 is for cluster=local"):
        check_ranks(parse(slurm()), [alone])
