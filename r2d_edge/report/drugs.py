"""Drug-like words of a text: a small rule, not a drug list.

A word counts if it ends in the stem of a class of drugs, as the World Health Organization assigns them in
international non-proprietary names ("-olol" for beta blockers, "-pril" for ACE inhibitors), or is one of the
few common drugs that have no such stem. Brand names are not known to it.
"""

from __future__ import annotations

import re

_STEMS = (
    *("asone", "isone", "olone", "onide", "terol", "phylline", "tropium", "lukast"),  # airways, steroids
    *("olol", "pril", "prilat", "sartan", "dipine", "zosin", "semide", "thiazide", "statin", "fibrate", "darone"),
    *("cillin", "mycin", "micin", "azole", "floxacin", "cycline", "penem", "oxacin", "vir", "fungin", "quine"),
    *("xaban", "gatran", "parin", "dogrel", "grelor", "teplase"),
    *("gliptin", "gliflozin", "glitazone", "formin", "glutide", "gliclazide", "glinide"),
    *("azepam", "zolam", "barbital", "oxetine", "ipramine", "triptyline", "apine", "peridone", "piprazole"),
    *("triptan", "setron", "tidine", "perazine", "thazine", "racetam", "gabalin", "clopramide"),
    *("profen", "coxib", "fenac", "caine", "fentanil", "codone", "morphone", "curonium", "dronate"),
    *("tinib", "mab", "trexate", "platin", "taxel", "rubicin"),
)
# Common ones without a stem of their own.
_DRUGS = frozenset(
    (
        *("acetaminophen", "acetylsalicylic", "adrenaline", "amiodarone", "aspirin", "atropine", "buprenorphine"),
        *("clonidine", "codeine", "colchicine", "cortisone", "digoxin", "diphenhydramine", "ephedrine", "epinephrine"),
        *("ergotamine", "fentanyl", "furosemide", "gabapentin", "glucagon", "haloperidol", "heparin", "hydralazine"),
        *("insulin", "ketamine", "levothyroxine", "lithium", "loperamide", "meperidine", "methadone", "methimazole"),
        *("morphine", "naloxone", "naproxen", "nitrofurantoin", "nitroglycerin", "nitroglycerine", "noradrenaline"),
        *("oxytocin", "paracetamol", "phenytoin", "propofol", "quinine", "salbutamol", "spironolactone", "tramadol"),
        *("trazodone", "valproate", "venlafaxine", "warfarin"),
    )
)
# English words that end like a drug.
_NOT_DRUGS = frozenset(("april", "cholesterol", "rapine"))
_WORD = re.compile(r"[^\W\d_]{5,}")
_STEM = re.compile(rf"[^\W\d_]{{2,}}(?:{'|'.join(sorted(_STEMS, key=len, reverse=True))})")


def drug_words(text: str) -> list[str]:
    """The drug-like words of a text in lower case, in order, each once; a plural -s is dropped."""
    found: dict[str, None] = {}
    for word in _WORD.findall(text.casefold()):
        for form in (word, word.removesuffix("s")):
            if _is_drug(form):
                found[form] = None
                break
    return list(found)


def unsupported_drugs(text: str, note: str) -> list[str]:
    """The drug-like words of a text that do not stand in its note, in order, each once."""
    held = {form for word in _WORD.findall(note.casefold()) for form in (word, word.removesuffix("s"))}
    return [word for word in drug_words(text) if word not in held]


def _is_drug(word: str) -> bool:
    return word in _DRUGS or (word not in _NOT_DRUGS and _STEM.fullmatch(word) is not None)
