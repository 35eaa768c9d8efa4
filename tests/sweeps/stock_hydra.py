"""What `hydra.main` gives its task: stdin [[arguments, …], …], stdout a list of runs for each.

A case that Hydra refuses gives the name of what it raised. Nothing of sweeps is imported here.
"""

import json
import os
import sys

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import OmegaConf

conf, scratch = sys.argv[1:]
os.environ["HYDRA_FULL_ERROR"] = "1"
OWN = [f"hydra.{key}.dir={scratch}" for key in ("run", "sweep")]
OWN += ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
# It would compose every run once more, to refuse all before the first.
BasicSweeper.validate_batch_is_legal = lambda *_: None

answers = []
for arguments in json.load(sys.stdin):
    runs = []

    def task(config, runs=runs):
        runs.append(OmegaConf.to_container(config, resolve=True))

    sys.argv = ["run.py", *arguments, *OWN]
    try:
        hydra.main(version_base="1.3", config_path=conf, config_name="config")(task)()
    except Exception as error:
        runs = type(error).__name__
    answers.append(runs)
json.dump(answers, sys.stdout)
