"""Mutants of the checks on a bench job; those it shares with all documents are in .mutants."""

from tests.attacks.mutants import Mutant

CHECKS = "fleet_contract.trust.bench"
_AUDIENCE = "if (job.fleet, job.device) != (fleet, device):"
_SIZE = "if size_bytes > limits.BENCH_BYTES or job.rows.size_bytes > limits.BENCH_ROWS_BYTES:"


def _mutant(check: str, piece: str, instead: str = "if False:") -> Mutant:
    return Mutant(check, CHECKS, "check_bench_job", piece, instead)


BENCH = [
    _mutant("4 audience: fleet", _AUDIENCE, "if job.device != device:"),
    _mutant("4 audience: device", _AUDIENCE, "if job.fleet != fleet:"),
    _mutant("5 generation", "checks.check_generation(job.generation, keyset)", "pass"),
    _mutant("6 number: no job from before", "if job.number <= done:", "if job.number == done:"),
    _mutant("6 number: no job twice", "if job.number <= done:", "if job.number < done:"),
    _mutant("7 expiry", "if now_ms >= job.expires_ms:"),
    _mutant("8 size: of all files", _SIZE, "if job.rows.size_bytes > limits.BENCH_ROWS_BYTES:"),
    _mutant("8 size: of the rows", _SIZE, "if size_bytes > limits.BENCH_BYTES:"),
]
