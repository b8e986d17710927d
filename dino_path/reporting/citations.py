"""What to cite, as BibTeX: the methods whose terms a run's objective had."""

from __future__ import annotations

from collections.abc import Sequence

from dino_path.reporting.evaluations import Plain

DINO = """@inproceedings{caron2021dino,
  title     = {Emerging Properties in Self-Supervised Vision Transformers},
  author    = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J{\\'e}gou, Herv{\\'e} and Mairal, Julien and
               Bojanowski, Piotr and Joulin, Armand},
  booktitle = {ICCV},
  year      = {2021}
}"""
IBOT = """@inproceedings{zhou2022ibot,
  title     = {{iBOT}: Image {BERT} Pre-Training with Online Tokenizer},
  author    = {Zhou, Jinghao and Wei, Chen and Wang, Huiyu and Shen, Wei and Xie, Cihang and Yuille, Alan and
               Kong, Tao},
  booktitle = {ICLR},
  year      = {2022}
}"""
KOLEO = """@inproceedings{sablayrolles2019spreading,
  title     = {Spreading Vectors for Similarity Search},
  author    = {Sablayrolles, Alexandre and Douze, Matthijs and Schmid, Cordelia and J{\\'e}gou, Herv{\\'e}},
  booktitle = {ICLR},
  year      = {2019}
}"""
KDE = """@article{zimmermann2024virchow2,
  title   = {Virchow2: Scaling Self-Supervised Mixed Magnification Models in Pathology},
  author  = {Zimmermann, Eric and Vorontsov, Eugene and Viret, Julian and others},
  journal = {arXiv:2408.00738},
  year    = {2024}
}"""
SWAV = """@inproceedings{caron2020swav,
  title     = {Unsupervised Learning of Visual Features by Contrasting Cluster Assignments},
  author    = {Caron, Mathilde and Misra, Ishan and Mairal, Julien and Goyal, Priya and Bojanowski, Piotr and
               Joulin, Armand},
  booktitle = {NeurIPS},
  year      = {2020}
}"""


def citations(configs: Sequence[Plain]) -> str:
    """BibTeX of DINO, and of the other methods that a run used."""
    objectives = [config.get("objective") or {} for config in configs]
    used = [DINO]
    for term, entry in (("ibot", IBOT), ("koleo", KOLEO), ("kde", KDE)):
        if any((objective.get(term) or {}).get("weight") for objective in objectives):
            used.append(entry)
    if any("sinkhorn" in str((objective.get("targets") or {}).get("method", "")) for objective in objectives):
        used.append(SWAV)
    return "\n\n".join(used)
