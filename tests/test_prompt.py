"""A talk as tokens: asked with what it was trained on, in every turn, on any day; what people write controls nothing; too long is said."""
import datetime

import pytest
from llms import CHATML, FAMILIES, TEMPLATES, tokenizer
from tokenizers import AddedToken

from ecgnb.leads import ECGError
from ecgnb.prompt import Prompt, TooLong
from ecgnb.talk import checked, turns_of

QWEN3 = ("{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|im_end|>\n' }}"
         "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}")
LLAMA3 = ("{{ '<|im_start|>system\n' }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ 'Today Date: ' + date_string + '<|im_end|>\n' }}" + CHATML)
TURNS = [dict(role='user', text='<ecg>\nWhat is the rhythm?'), dict(role='assistant', text='sinus rhythm'), dict(role='user', text='Rate?'), dict(role='assistant', text='72'),
         dict(role='user', text='Sure?'), dict(role='assistant', text='yes')]


def talk(turns=TURNS, records=('a',)): return dict(id='1', records=list(records), turns=turns, kind='', answers=[])


@pytest.mark.parametrize('template', [CHATML, QWEN3, LLAMA3, *[TEMPLATES.get(f, CHATML) for f in FAMILIES]])
def test_every_turn_is_asked_with_what_it_was_trained_on(template):
    t = tokenizer(template)
    p = Prompt(t, system='Be brief.')
    row = p.write(talk(), [4])
    for k in (1, 3, 5):
        asked = p.write(talk(TURNS[:k]), [4], reply=True)
        n = len(asked['input_ids'])
        assert row['input_ids'][:n].tolist() == asked['input_ids'].tolist()
        assert row['labels'][n - 1] == -100 and row['labels'][n] >= 0
    said = t.decode(row['labels'][row['labels'] >= 0])
    assert said == ''.join(x['text'] + t.eos_token for x in TURNS[1::2])


def test_a_prompt_is_the_same_on_any_day():
    text = ''.join(Prompt(tokenizer(LLAMA3)).render(('user', 'assistant')))
    assert 'Today Date: 26 Jul 2024' in text and str(datetime.date.today().year) not in text.replace('2024', '')


@pytest.mark.parametrize('bad', ['<|im_end|>', '<tool_call>', '<think>', '<eos>', '<pad>'])
def test_nothing_that_people_write_is_a_token_of_control(bad):
    t = tokenizer()
    t.add_tokens([AddedToken('<tool_call>', special=False), AddedToken('<think>', special=False)])
    p, control = Prompt(t), t.convert_tokens_to_ids(bad)
    plain, sly = (p.write(talk([dict(role='user', text=f'say {x} now')], ()), reply=True)['input_ids'].tolist() for x in ('it', bad))
    assert sly.count(control) == plain.count(control) and bad in t.decode(sly)


def test_an_ecg_belongs_to_a_question_not_to_an_answer():
    turns, *_ = turns_of([{'from': 'human', 'value': 'Is it?'}, {'from': 'gpt', 'value': '<image> yes'}])
    assert turns[0]['text'].startswith('<ecg>') and '<ecg>' not in turns[1]['text']
    with pytest.raises(ECGError, match='turn of the assistant'): checked(talk([dict(role='user', text='Is it?'), dict(role='assistant', text='<ecg> yes')]))
    with pytest.raises(ECGError, match='says nothing'): checked(talk([dict(role='user', text='<ecg> Is it?'), dict(role='assistant', text='')]))


@pytest.mark.parametrize('bad', [[{'from': ['human'], 'value': 'x'}], '['*20_000, [{'role': 'user', 'content': 3}], {'a': 1}, None, 7, ['x', 'y', 3], [[]]])
def test_what_is_no_conversation_is_said_so(bad):
    try: turns, kind, _ = turns_of(bad)
    except ECGError: return
    assert kind == 'report' and turns[1]['text']           # a text that only looks like JSON


def test_half_an_emoji_is_replaced():
    turns, *_ = turns_of([{'from': 'human', 'value': 'Is it \ud83d ok?'}, {'from': 'gpt', 'value': 'no'}])
    assert '\ud83d' not in turns[0]['text'] and turns[0]['text'].encode()
    Prompt(tokenizer()).write(talk(turns), [3])


def test_too_long_names_the_talk_and_what_to_do():
    with pytest.raises(TooLong, match='talk 1: .*context=16 has no room'): Prompt(tokenizer(), context=16).write(talk(), [40])
