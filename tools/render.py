"A notebook as Markdown: its text, its code and its stored outputs, as its `#|` directives ask."
import base64
import html
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
MIMES = ('text/html', 'text/markdown', 'image/svg+xml', 'image/png', 'image/jpeg', 'text/latex', 'text/plain')   # richest first

def read(path): return json.loads(Path(path).read_text(encoding='utf-8'))['cells']

def text(x): return ''.join(x) if isinstance(x, list) else x

def split(src):
    "(directives, code): `#| fig-alt: an ECG` -> {'fig-alt': 'an ECG'}; a flag has the value 'true'."
    lines, said = src.splitlines(), {}
    for line in lines:
        if line.startswith('#|') and (m := re.match(r'([\w-]+)\s*:?\s*(.*)', line[2:].strip())): said[m[1]] = m[2].strip('"\' ') or 'true'
    return said, '\n'.join(s for s in lines if not s.startswith('#|')).strip('\n')

def opening(cells):
    "(title, the `> ` line, the rest of the first cell)."
    lines = text(cells[0]['source']).splitlines()
    title = next((s[2:].strip() for s in lines if s.startswith('# ')), 'untitled')
    what = next((s[2:].strip() for s in lines if s.startswith('> ')), '')
    rest = [s for s in lines if not s.startswith('# ') and s != f'> {what}']
    return title, what, '\n'.join(rest).strip()

def sentence(md):
    "The first sentence of a Markdown cell in plain words: what a picture below it shows."
    body = ' '.join(s for s in md.splitlines() if s.strip() and not s.startswith(('#', '|', ':::', '```', '$$')))
    body = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'[*`$>]|^\s*[-\d.]+\s', '', body))
    return re.split(r'(?<=[.:!?])\s', body.strip())[0].rstrip(':')[:200]

def fence(code, kind=''):
    ticks = '`' * max(3, 1 + max(map(len, re.findall('`+', code)), default=0))
    return f'{ticks}{kind}\n{code}\n{ticks}'

def raw(markup): return fence(markup, '{=html}')

def plain(out, html_out):
    out = re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', out).replace('\r\n', '\n').rstrip()
    out = '\n'.join(s.split('\r')[-1] for s in out.split('\n'))      # a progress bar: its last state
    if not out.strip(): return ''
    return raw(f'<pre class="output">{html.escape(out)}</pre>') if html_out else fence(out, 'text')

def output(out, said, picture, html_out):
    "One stored output. `picture(bytes, suffix)` keeps an image and returns its link."
    if out['output_type'] == 'stream': return plain(text(out['text']), html_out) if out['name'] == 'stdout' or html_out else ''
    if out['output_type'] == 'error': return plain(f"{out['ename']}: {out['evalue']}", html_out)
    data = out['data']
    for mime in MIMES:
        if mime not in data or (mime == 'text/html' and not html_out): continue
        x = text(data[mime])
        if mime == 'text/plain': return '' if re.match(r'<Figure size|<IPython\.core\.display', x) else plain(x, html_out)
        if mime == 'text/html': return raw('<div class="rich">' + re.sub(r'<style.*?</style>', '', x, flags=re.S) + '</div>')
        if mime in ('text/markdown', 'text/latex'): return x
        suffix = {'image/svg+xml': 'svg', 'image/png': 'png', 'image/jpeg': 'jpg'}[mime]
        link = picture(x.encode() if suffix == 'svg' else base64.b64decode(x), suffix)
        seen = text(data.get('text/plain', ''))
        alt = said.get('fig-alt') or said.get('fig-cap') or (said['before'] if seen.startswith('<') or not seen else seen.split('\n')[0][:200])
        alt = re.sub(r'[\[\]\\]', '', alt)
        return raw(f'<figure><img src="{link}" alt="{html.escape(alt, quote=True)}" loading="lazy"></figure>') if html_out else f'![{alt}]({link})'
    return ''

def markdown(cells, picture, html_out=True):
    "The notebook's cells after its opening, as one Markdown text."
    parts, before = [], ''
    for cell in cells:
        src = text(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(src)
            before = sentence(src) or before
        if cell['cell_type'] != 'code': continue
        said, code = split(src)
        said['before'] = before or 'figure'
        no = lambda *keys: any(said.get(k) == 'false' for k in keys)
        if 'hide' in said or 'default_exp' in said or no('include') or code.startswith('show_doc('): continue
        if code and not (no('echo') or 'hide_input' in said):
            kind = '{.python .exported}' if html_out and any(k in said for k in ('export', 'exporti', 'exports')) else 'python'
            block = fence(code, kind)
            parts.append(f'{raw("<details><summary>code</summary>")}\n\n{block}\n\n{raw("</details>")}' if said.get('code-fold') == 'true' else block)
        if no('output') or 'hide_output' in said: continue
        parts += [output(o, said, picture, html_out) for o in cell.get('outputs', [])]
    return '\n\n'.join(p for p in parts if p.strip())
