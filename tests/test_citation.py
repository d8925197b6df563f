"""Every method has its references or says that it has none, and results cite what they were made with."""

import functools
import inspect
import re
from importlib import resources

import pytest
import torch
from typer.testing import CliRunner

import boltzflow as bf
from boltzflow import forcefield, objectives, paths, simulation, statistics, targets, transitions
from boltzflow.citation import REFERENCES, cite
from boltzflow.cli import cite as _command  # noqa: F401
from boltzflow.cli.app import app
from boltzflow.errors import FormatError, UnknownNameError
from boltzflow.forcefield.term import Term
from boltzflow.generators import Generator
from boltzflow.io import load_config, parse_config
from boltzflow.io.checkpoint import load_checkpoint
from boltzflow.io.provenance import Provenance, method_names
from boltzflow.objectives import Objective, build_objective
from boltzflow.paths import Path, TemperedPath
from boltzflow.simulation import ParallelTempering
from boltzflow.targets import DoubleWell, Gaussian, Target
from boltzflow.transitions import HMC, MALA, AffineCoupling, BatchStep, SplineCoupling, SystematicResampling, Transition

REQUIRED = {
    "article": {"author", "title", "journal", "volume", "pages", "year"},
    "book": {"author", "title", "publisher", "year"},
    "incollection": {"author", "title", "booktitle", "publisher", "pages", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "misc": {"author", "title", "year"},
}


def parse_bib(text):
    """[(type, key, {field: value})] of a bibliography whose values are in braces; braces must balance."""
    found, position = [], 0
    while match := re.compile(r"@(\w+)\{([^,\s]+),").search(text, position):
        fields, position = {}, match.end()
        while field := re.compile(r"\s*(\w+) = \{").match(text, position):
            depth, start = 1, field.end()
            position = start
            while depth:
                depth += {"{": 1, "}": -1}.get(text[position], 0)
                position += 1
            assert field[1] not in fields, (match[2], field[1])
            fields[field[1]] = text[start : position - 1]
            assert text[position] == ",", (match[2], field[1])
            position += 1
        end = re.compile(r"\s*\}\n").match(text, position)
        assert end, match[2]
        position = end.end()
        found.append((match[1], match[2], fields))
    assert text.count("@") == len(found)
    return found


def keys(text):
    return {key for _, key, _ in parse_bib(text)}


def public(module, base):
    """Concrete subclasses among the public names of a package."""
    found = [getattr(module, name) for name in module.__all__]
    return {c.__name__ for c in found if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)}


BIB = parse_bib(resources.files("boltzflow").joinpath("references.bib").read_text(encoding="utf-8"))


def test_bibliography_is_well_formed():
    assert len({key for _, key, _ in BIB}) == len(BIB)
    for kind, key, fields in BIB:
        assert REQUIRED[kind] <= set(fields), key
        assert re.fullmatch(r"\d{4}", fields["year"]), key
        assert all(value.strip() and value.isascii() for value in fields.values()), key
        assert all("," in name or name.startswith("{") for name in fields["author"].split(" and ")), key
        if re.search(r"\d{4}$", key):
            assert key.endswith(fields["year"]), key
        if "doi" in fields:
            assert re.fullmatch(r"10\.\d{4,}/\S+", fields["doi"]), key
        if "eprint" in fields:
            assert re.fullmatch(r"\d{4}\.\d{5}", fields["eprint"]), key
            assert fields["archiveprefix"] == "arXiv", key
        assert not re.search(r"\d-\d", fields.get("pages", "")), key


def test_no_work_is_listed_twice():
    for field in ("doi", "eprint", "title"):
        values = [fields[field].lower() for _, _, fields in BIB if field in fields]
        assert len(set(values)) == len(values), field


def test_every_reference_exists_and_every_entry_is_reachable():
    assert {key for found in REFERENCES.values() for key in found} == {key for _, key, _ in BIB}


BASES = {BatchStep, Transition, transitions.Bijection, transitions.DetailedBalance, transitions.MetropolisKernel}
BASES |= {Objective, Target, targets.Base, targets.MoleculeTarget, targets.PairTarget, Term}


@pytest.mark.parametrize(
    ("module", "base"),
    [
        (transitions, Transition),
        (transitions, BatchStep),
        (objectives, Objective),
        (paths, Path),
        (targets, Target),
        (forcefield, Term),
    ],
)
def test_every_method_says_what_to_cite(module, base):
    found = public(module, base) - {c.__name__ for c in BASES}
    assert found
    missing = found - set(REFERENCES)
    assert not missing, f"add {sorted(missing)} to boltzflow.citation.REFERENCES, with () if there is nothing to cite"


def test_every_driver_and_estimator_says_what_to_cite():
    drivers = {n for n in simulation.__all__ if callable(getattr(getattr(simulation, n), "run", None))}
    assert "ParallelTempering" in drivers
    estimators = {name for name in statistics.__all__ if "References:" in (getattr(statistics, name).__doc__ or "")}
    assert "mbar" in estimators
    assert not (drivers | estimators | {"molecular_dynamics"}) - set(REFERENCES)


@pytest.mark.parametrize("name", ["likelihood", "coverage", "reverse_kl", "self_forward_kl", "self_reverse_kl"])
def test_configured_objectives_are_those_that_are_built(name):
    flow = Generator(Gaussian(2), [AffineCoupling(["line"] * 2, torch.tensor([True, False]), field="x", hidden=(4,))])
    config = parse_config({"system": "x", "objective": {"likelihood": 0.0, name: 1.0}}).objective
    objective = build_objective(flow, DoubleWell(), config)
    assert config.methods[0] == type(objective).__name__
    assert set(config.methods) <= set(REFERENCES)


def test_path_gradients_are_cited_where_they_are_used():
    values = {"likelihood": 0.0, "reverse_kl": 1.0, "path_gradient": True}
    assert parse_config({"system": "x", "objective": values}).objective.methods == ("ReverseKL", "path gradient")


def test_generator_cites_what_it_holds_and_nothing_else():
    target = DoubleWell().double()
    steps = [SystematicResampling(level=0.5), MALA(0.02, level=0.5)]
    path = functools.partial(TemperedPath, beta_0=0.1)
    ensemble = Generator(Gaussian(2), steps, path=path).double().sample(100, target, seed=1)
    assert ensemble.provenance.methods == [
        "Generator", "Gaussian", "SystematicResampling", "MALA", "TemperedPath", "DoubleWell", "lineage error"
    ]  # fmt: skip
    found = keys(cite(ensemble))
    assert {"boltzflow", "kitagawa1996", "roberts1996", "neal2001", "vehtari2024"} <= found
    assert not {"durkan2019", "eastman2024", "hukushima1996", "chodera2007"} & found
    mask = torch.tensor([True, False])
    lines, circles = (Generator(Gaussian(2), [SplineCoupling([kind] * 2, mask)]) for kind in ("line", "circle"))
    assert "neal2001" not in keys(cite(lines))
    assert keys(cite(circles)) - keys(cite(lines)) == {"rezende2020"}


def test_chains_cite_the_simulation():
    target = DoubleWell().double()
    start = Gaussian(2).double().sample(1, bf.make_rng(0))
    start = bf.State({"x": start["x"]}, target.fields)
    for temperatures in ([1.0], [1.0, 2.0]):
        simulation = ParallelTempering(
            target, start, temperatures=temperatures, n_chains=2, kernels=[MALA(0.05)], seed=1
        )
        simulation.burn_in(4)
        result = simulation.run(4)
        assert ("ParallelTempering" in result.methods) == (len(temperatures) > 1)
        assert {"MALA", "dual averaging", "DoubleWell"} <= set(result.methods)


def test_differences_between_systems_cite_their_estimator():
    a, b = (target.double() for target in targets.harmonic_pair(2))
    start = a.state(torch.zeros(1, 2, dtype=torch.float64))
    options = {"start": start, "kernels": [HMC(0.5, n_leapfrog=3)], "sweeps_per_record": 1, "seed": 1}
    found = bf.analysis.system_difference(a, b, method="bar", n=200, n_chains=5, n_burn_in=10, **options)
    assert {"bennett1976", "hukushima1996", "chodera2007", "duane1987"} <= keys(cite(found))


@pytest.fixture(scope="module")
def alanine():
    return bf.load_system("alanine_dipeptide")


def test_ensemble_of_a_molecule_cites_flow_training_force_field_and_tools(alanine, tmp_path):
    ensemble = alanine.load_generator().sample(200, alanine.target, seed=1)
    expected = {
        *("boltzflow", "noe2019", "durkan2019", "rezende2020", "parsons2005"),  # the generator
        *("midgley2023", "mueller2019", "richter2020"),  # what trained it
        *("onufriev2004", "hawkins1995", "schaefer1998", "kollman1997"),  # the force field
        *("eastman2024", "mcgibbon2015", "paszke2019", "vehtari2024"),  # tools and diagnostics
    }
    assert expected <= keys(cite(ensemble))
    ensemble.save(tmp_path / "ensemble.h5")
    assert cite(tmp_path / "ensemble.h5") == cite(ensemble)
    assert keys(cite(alanine)) < keys(cite(ensemble))
    warmer = bf.analysis.reweight(ensemble, bf.load_system("alanine_dipeptide@310").target)
    assert keys(cite(warmer)) - keys(cite(ensemble)) == {"zwanzig1954"}


def test_checkpoint_and_run_cite_the_training(alanine):
    checkpoint = load_checkpoint(alanine.checkpoint_path)
    assert keys(cite(checkpoint)) == keys(cite(alanine.checkpoint_path)) >= {"mueller2019", "durkan2019", "kollman1997"}
    run = load_config(alanine.folder / "recipes" / "likelihood.yaml")
    assert keys(cite(run)) == keys(cite(alanine.folder / "recipes" / "likelihood.yaml"))
    assert keys(cite(run)) - keys(cite(alanine)) == {
        "noe2019", "wu2020", "durkan2019", "rezende2020", "parsons2005", "loshchilov2019"
    }  # fmt: skip


def test_a_run_cites_the_simulation_that_it_describes(alanine):
    values = {"system": alanine.name, "simulation": {"keep": "all"}}
    tempering = keys(cite(parse_config(values)))
    assert {"hukushima1996", "duane1987", "shirts2008"} <= tempering
    assert not {"durkan2019", "loshchilov2019"} & tempering
    dynamics = keys(cite(parse_config({**values, "simulation": {"method": "md"}})))
    assert "zhang2019" in dynamics
    assert not {"hukushima1996", "shirts2008"} & dynamics
    both = keys(cite(parse_config({**values, "objective": {"likelihood": 1.0}})))
    assert both > tempering | {"durkan2019", "loshchilov2019"}


def test_nothing_is_silent():
    assert "not recorded" in cite(Provenance())
    text = cite(Provenance(methods=["MALA", "MyKernel"]))
    assert text.startswith("% no reference is known here for: MyKernel\n")
    assert "roberts1996" in keys(text)
    with pytest.raises(TypeError, match="got int"):
        cite(3)
    with pytest.raises(UnknownNameError, match="nonsense"):
        cite("nonsense")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(FormatError, match=r"notes\.txt: expected an ensemble"):
        cite(tmp_path / "notes.txt")


def test_methods_survive_merging_and_files():
    first, second = Provenance(methods=["HMC", "MALA"]), Provenance(methods=["MALA", "bar"])
    assert Provenance.merged([first, second]).methods == ["HMC", "MALA", "bar"]
    assert Provenance.from_dict(first.as_dict()).methods == ["HMC", "MALA"]
    assert method_names("a", first, DoubleWell(), "a") == ["a", "HMC", "MALA", "DoubleWell"]


def test_core_references_and_the_command_line():
    core = keys(cite())
    assert {"boltzflow", "noe2019", "wu2020", "eastman2024"} <= core
    found = CliRunner().invoke(app, ["cite"])
    assert found.exit_code == 0
    assert found.output == cite()
