import pytest

from r2d_edge.report.drugs import drug_words, unsupported_drugs


def test_drug_words_are_those_with_a_stem_and_a_few_others():
    text = "On Metoprolol, ramipril and atorvastatin; penicillins, fluconazole, losartan. Took aspirin and warfarin."
    expected = "metoprolol ramipril atorvastatin penicillin fluconazole losartan aspirin warfarin"
    assert drug_words(text) == expected.split()


@pytest.mark.parametrize(
    "text",
    [
        "In April her breakfast was late; high cholesterol, chest pain, a fast pulse, statin.",
        "He was told to wait at the east entrance with a cast on the forearm and a broken nail.",
        "pril olol azole",
        "",
    ],
)
def test_other_words_are_none(text):
    assert drug_words(text) == []


def test_a_drug_that_the_note_holds_is_supported():
    note = "Takes BISOPROLOL and two penicillins daily."
    said = "Bisoprolol slows the heart, penicillin and Apixaban were named; apixaban thins the blood."
    assert unsupported_drugs(said, note) == ["apixaban"]
    assert unsupported_drugs("opioids and insulins", "insulin") == []
