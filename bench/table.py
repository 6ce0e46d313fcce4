"""Rows of figures, ours beside the peer's: which are wanted, and what the rounds come to."""
import collections
import statistics


def add_options(parser):
    """What all of bench/ understand, so that bench/run can hand it on."""
    parser.add_argument("build", nargs="?", default="build")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=lambda text: text.split(","), default=[],
                        help="only these: names as printed, or their beginnings up to a dot")


def wanted(name, patterns):
    """Whether row "disk.raw.read" is asked for: by its name or a beginning of it ("disk"). A
    pattern that says more than `name` asks for something inside of it."""
    return not patterns or any(
        f"{name}.".startswith(f"{pattern}.") or f"{pattern}.".startswith(f"{name}.")
        for pattern in patterns)


def median(values):
    """Of what there is: a round that failed is None."""
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def ratio(above, below):
    """The median of the rounds' ratios: what disturbs a round disturbs both sides of it."""
    return median([a / b for a, b in zip(above, below) if a and b])


def cell(values, unit):
    """The median; nothing where nothing was measured, which is another thing than a failure."""
    value = median(values)
    if value is None:
        return "failed" if values else ""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def times(value, bar=None):
    if value is None:
        return ""
    return f"{value:.2f} x" + (" short" if bar and value < bar else "")


def head(title):
    print(f"| {title} | Lodge | QEMU TCG | better by | bar |")
    print("| --- | --- | --- | --- | --- |", flush=True)


class Table:
    """Values of each row and side, one for each round."""

    def __init__(self, section, patterns):
        self.section, self.patterns = section, patterns
        self.values = collections.defaultdict(lambda: collections.defaultdict(list))

    def wants(self, row):
        return wanted(f"{self.section}.{row}", self.patterns)

    def add(self, row, who, value):
        self.values[row][who].append(value)

    def show(self, row, unit, bar=None, less_is_better=False, most=None):
        """`bar` is for the ratio, `most` for our own figure."""
        if not self.wants(row):
            return
        ours, theirs = self.values[row]["lodge"], self.values[row]["qemu"]
        better = ratio(theirs, ours) if less_is_better else ratio(ours, theirs)
        limit = f"{bar} x" if bar else f"at most {most} {unit}" if most else ""
        print(f"| {self.section}.{row} | {cell(ours, unit)} | {cell(theirs, unit)} "
              f"| {times(better, bar)} | {limit} |", flush=True)
