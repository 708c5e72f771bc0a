"""The verbs of the command line, one module each, and what several of them share."""

VERBS = {
    "suite": "run a set of workloads, which compare judges as one",
    "compare": "compare recorded runs: same work, same computation, which is faster",
    "table": "rank many recorded runs, and name the outliers among them",
    "history": "find the steps in records over time, and what changed there",
    "bundle": "pack records for publication, without hosts, users, paths and secrets",
    "claim": "list published claims about chips, and the commands that test them",
    "audit": "check a published table of training speeds",
    "project": "estimate a large training run: days, device-hours, energy",
    "plan": "show what each rank of a run would hold, without any device",
    "doctor": "show which backends can run on this host, and what the others lack",
    "peak": "measure the peak rates of a device",
    "health": "is a run on this host making progress? (for container health checks)",
    "export": "write the weights of a run's checkpoint as a Hugging Face model",
    "completion": "print a script that completes the command line in a shell",
    "torchrun": "launch one run on several devices",
}
"""Each verb is a module with a function `main`. A command line without a verb is a run's (train.py)."""
