"""The tokenizer wrapper, over tiny tokenizers built here."""

from __future__ import annotations

import json
import warnings
from logging import ERROR

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from shoal.runtime.errors import InvalidRequestError, ModelLoadError
from shoal.runtime.text.chat_markers import PLAIN, ChatMarkers
from shoal.runtime.text.conversation import Conversation
from shoal.runtime.text.tokenizer import Tokenizer

from ..model.oracle import DREAM_TINY

WORDS = ["red", "blue", "apple", "pear", "costs", "system", "user", "assistant", "."]
SPECIAL = ["<bos>", "<eot>", "<head>", "</head>", "<mask>"]

# As LLaDA's: BOS before the first message, and an assistant header at the end whatever is asked.
STUBBORN = (
    "{% for m in messages %}{% if loop.first %}<bos>{% endif %}"
    "<head>{{ m['role'] }}</head>{{ m['content'] }}<eot>{% endfor %}<head>assistant</head>"
)
# As Qwen2's: the header only when asked for, and a first message is taken for granted.
POLITE = (
    "{% if messages[0]['role'] == 'system' %}<bos>{% endif %}"
    "{% for m in messages %}<head>{{ m['role'] }}</head>{{ m['content'] }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<head>assistant</head>{% endif %}"
)
# Stubborn, and no rendering without a message.
STUBBORN_AND_STRICT = "{{ '' if messages else raise_exception('no messages') }}" + STUBBORN

SYSTEM = {"role": "system", "content": "red apple costs"}
QUESTION = {"role": "user", "content": "blue pear"}


def write_tokenizer(folder, template=None, **config):
    vocabulary = {word: i for i, word in enumerate(["<unk>", *SPECIAL, *WORDS])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(SPECIAL)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<bos>", **config}
    if template:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary


def test_special_tokens_in_the_text_are_parsed_and_none_are_added(tmp_path):
    vocabulary = write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("red<mask>apple<eot>") == [vocabulary[t] for t in ("red", "<mask>", "apple", "<eot>")]
    assert tokenizer.encode("purple") == [vocabulary["<unk>"]]
    assert tokenizer.encode("") == []
    assert tokenizer.vocab_size == len(vocabulary)


def test_transformers_is_quiet_while_loading_and_as_before_afterwards(tmp_path, monkeypatch):
    """It would warn that it has no class for model type llada, on every start."""
    import transformers
    from transformers.utils import logging

    write_tokenizer(tmp_path)
    load = transformers.AutoTokenizer.from_pretrained
    during = []

    def watched(*args, **options):
        during.append(logging.get_verbosity())
        return load(*args, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", watched)
    before = logging.get_verbosity()
    Tokenizer.load(tmp_path)
    assert during == [ERROR]
    assert logging.get_verbosity() == before != ERROR


def test_decode_skips_special_tokens_unless_told_not_to(tmp_path):
    vocabulary = write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    ids = [vocabulary[token] for token in ("red", "<eot>", "apple", ".")]
    assert tokenizer.decode(ids) == "redapple."
    assert tokenizer.decode(ids, skip_special_tokens=False) == "red<eot>apple."
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("template", [STUBBORN, POLITE, STUBBORN_AND_STRICT])
def test_a_chat_ends_where_the_answer_begins(tmp_path, template):
    write_tokenizer(tmp_path, template)
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.apply_chat_template([SYSTEM, QUESTION])
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == ("<bos><head>system</head>redapplecosts<eot><head>user</head>bluepear<eot><head>assistant</head>")


def test_without_a_generation_prompt_a_template_that_honours_the_wish_ends_with_the_message(tmp_path):
    write_tokenizer(tmp_path, POLITE)
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.apply_chat_template(Conversation(messages=[SYSTEM], add_generation_prompt=False))
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos><head>system</head>redapplecosts<eot>"


def test_a_chat_template_file_beside_the_tokenizer_is_used(tmp_path):
    write_tokenizer(tmp_path)
    assert not Tokenizer.load(tmp_path).has_chat_template
    (tmp_path / "chat_template.jinja").write_text(POLITE)
    assert Tokenizer.load(tmp_path).has_chat_template


def test_without_a_chat_template_chats_are_refused_by_name(tmp_path):
    write_tokenizer(tmp_path)
    with pytest.raises(ModelLoadError) as caught:
        Tokenizer.load(tmp_path).apply_chat_template([QUESTION])
    assert caught.value.field == "chat_template"


def test_a_folder_without_tokenizer_files_says_which_are_expected(tmp_path):
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.field == "tokenizer"


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "Strange"}}'])
def test_a_broken_tokenizer_file_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.field == "tokenizer"


def test_code_that_a_folder_brings_is_not_run_and_its_tokenizer_json_is_read(tmp_path):
    vocabulary = write_tokenizer(
        tmp_path, tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]}
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OwnTokenizer: pass\n")
    assert Tokenizer.load(tmp_path).encode("red pear") == [vocabulary["red"], vocabulary["pear"]]
    assert not (tmp_path / "ran").exists()


def test_dreams_folder_loads_as_byte_level_bpe_without_its_code(tmp_path):
    """Dream ships vocab.json, merges.txt and a tokenizer class of its own, but no tokenizer.json."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: i for i, letter in enumerate(sorted(letters))}
    vocabulary["re"] = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\n")
    added = {"content": "<|mask|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    added["single_word"] = False
    settings = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {str(len(vocabulary)): added},
        "mask_token": "<|mask|>",
        "unk_token": None,
        "bos_token": None,
        "eos_token": None,
        "pad_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenization_dream.py").write_text("raise SystemExit('remote code ran')")
    (tmp_path / "config.json").write_text(json.dumps(DREAM_TINY))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        tokenizer = Tokenizer.load(tmp_path)
    assert [str(warning.message) for warning in seen if warning.category is FutureWarning] == []
    ids = tokenizer.encode("red<|mask|>")
    assert ids == [vocabulary["re"], vocabulary["d"], len(vocabulary)]
    assert tokenizer.decode(ids) == "red"


BROKEN = {
    "syntax": ("{% for m in messages %}{{ m['content'] }", ModelLoadError, "can't be parsed: line 1"),
    "undefined": ("{{ messages[0].text.strip() }}", InvalidRequestError, "can't render the messages: UndefinedError"),
    "refusing": ("{{ raise_exception('no, thanks') }}", InvalidRequestError, "refuses the messages: no, thanks"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("file", [True, False])
def test_a_chat_template_that_fails_is_named_with_the_reason(tmp_path, name, file):
    template, kind, words = BROKEN[name]
    write_tokenizer(tmp_path, None if file else template)
    if file:
        (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer.load(tmp_path)
    place = "chat_template.jinja" if file else "chat_template in tokenizer_config.json"
    with pytest.raises(kind) as caught:
        tokenizer.apply_chat_template([QUESTION])
    assert f"the chat template ({place}) {words}" in str(caught.value)
    with pytest.raises(ModelLoadError) as caught:
        tokenizer.chat_markers()
    assert f"the chat template ({place})" in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.field == "chat_template"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "leaves out or changes the content"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "leaves out or changes the content"),
        ("{% for m in messages %}{{ loop.index }}{{ m['content'] }}{{ loop.index }}{% endfor %}", "ends otherwise"),
        (STUBBORN_AND_STRICT, "ends otherwise"),
    ],
)
def test_a_template_without_markers_is_an_error_for_programs_and_renders_chats(tmp_path, template, words):
    write_tokenizer(tmp_path, template)
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(ModelLoadError, match=rf"chat_template in tokenizer_config\.json.*{words}"):
        tokenizer.chat_markers()
    assert tokenizer.apply_chat_template([QUESTION, QUESTION])


@pytest.mark.parametrize("messages", ["red", [["user", "red"]], [None]])
def test_what_is_no_message_is_refused(tmp_path, messages):
    write_tokenizer(tmp_path, POLITE)
    with pytest.raises(InvalidRequestError, match=r"messages\[0\] is"):
        Tokenizer.load(tmp_path).apply_chat_template(messages)


def test_without_a_system_message_in_the_template_programs_have_none(tmp_path):
    strict = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    write_tokenizer(tmp_path, strict + POLITE.partition("{% for m in messages %}")[2])
    markers = Tokenizer.load(tmp_path).chat_markers()
    assert ChatMarkers.from_json(json.loads(json.dumps(markers.to_json()))) == markers
    assert markers.of("user", True) == ("<head>user</head>", "<eot>")
    with pytest.raises(InvalidRequestError, match="takes no system message"):
        markers.of("system", True)


@pytest.mark.parametrize("template", [STUBBORN, POLITE, None])
def test_markers_rebuild_the_conversation(tmp_path, template):
    write_tokenizer(tmp_path, template)
    markers = Tokenizer.load(tmp_path).chat_markers()
    assert ChatMarkers.from_json(json.loads(json.dumps(markers.to_json()))) == markers
    if template is None:
        assert markers == PLAIN
    else:
        talk = "".join(content.join(markers.of(role, i == 0)) for i, (role, content) in enumerate([
            ("system", "red"), ("user", "pear"), ("assistant", "apple"), ("user", "costs")]))  # fmt: skip
        assert (talk + markers.assistant[0]).startswith("<bos><head>system</head>red<eot><head>user</head>pear<eot>")
