"""The documentation site in _docs/: Quarto through nbdev where `quarto` is installed, else the same notebooks through pandoc.

python tools/docs.py [--pandoc] [--out FOLDER] [--sidebar]     (--sidebar: only nbs/sidebar.yml, the reading order)
"""
import argparse
import ast
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

from render import NBS, ROOT, markdown, opening, raw, read, split, text

LIB, HERE = ROOT / 'ecgnb', Path(__file__).resolve().parent
DIALECT = ('markdown-citations-example_lists-yaml_metadata_block-subscript-superscript-raw_tex-latex_macros-blank_before_header'
           '-blank_before_blockquote+lists_without_preceding_blankline+autolink_bare_uris+emoji')
BEFORE = ('tutorials',)      # folders read before the stages; the others (explanations) come after them

class Page:
    "A notebook (or CONTRIBUTING.md) and where it goes."
    def __init__(self, path):
        self.path, self.cells = path, read(path) if path.suffix == '.ipynb' else None
        self.rel = path.relative_to(NBS) if self.cells else Path('contributing.md')
        self.folder, self.url, self.up = str(self.rel.parent), self.rel.with_suffix('.html').as_posix(), '../' * (len(self.rel.parts) - 1)
        if not self.cells: self.title, self.what, self.module = 'Contributing', '', None; return
        self.title, self.what, self.rest = opening(self.cells)
        mods = [d['default_exp'] for c in self.cells if c['cell_type'] == 'code' for d in [split(text(c['source']))[0]] if 'default_exp' in d]
        self.module = f'ecgnb.{mods[0]}' if mods else None
        self.file = LIB.joinpath(*mods[0].split('.')).with_suffix('.py') if mods else None
        if self.file and not self.file.exists(): self.file = self.module = None
        self.tree = ast.parse(self.file.read_text()) if self.file else None
        self.names = next((ast.literal_eval(n.value) for n in self.tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__'),
                          []) if self.tree else []

def uses(page):
    "Names of the modules that a page's module imports: what one reads first."
    return {n.module.split('.')[-1] for n in ast.walk(page.tree) if isinstance(n, ast.ImportFrom) and n.module} if page.tree else set()

def read_in_order(pages):
    "Pages of one folder: a module after those it builds on, otherwise by name."
    left, out = sorted(pages, key=lambda p: p.title.lower()), []
    while left:
        waits = {p.rel.stem for p in left}
        out.append(next((p for p in left if not uses(p) & (waits - {p.rel.stem})), left[0]))
        left.remove(out[-1])
    return out

def section(folder): return re.sub(r'^\d+_', '', folder).replace('_', ' ').capitalize()

def site():
    "[(section, [pages])] in reading order; the first is the landing page alone."
    pages = [Page(p) for p in sorted(NBS.rglob('*.ipynb')) if not any(d.startswith(('.', '_')) for d in p.relative_to(NBS).parts)]
    folders = sorted({p.folder for p in pages} - {'.'}, key=lambda f: (f not in BEFORE and not f[0].isdigit(), f not in BEFORE, f))
    top = [p for p in pages if p.folder == '.']
    more = [Page(ROOT / 'CONTRIBUTING.md')] if (ROOT / 'CONTRIBUTING.md').exists() else []
    return [('', top), *[(section(f), read_in_order([p for p in pages if p.folder == f])) for f in folders], ('', more)]

def sidebar():
    "The reading order for Quarto."
    import yaml
    items = []
    for name, pages in site():
        links = [p.rel.as_posix() for p in pages if p.cells]
        items += [{'section': name, 'contents': links}] if name else links
    return yaml.safe_dump({'website': {'sidebar': {'contents': items}}}, sort_keys=False)

def say(doc):
    "A docstring as HTML."
    return '<p>' + re.sub(r'`([^`]+)`', r'<code>\1</code>', html.escape(' '.join((doc or '').split()))) + '</p>' if doc else ''

def api(page):
    "Signatures, docstrings and fields of what the notebook exports."
    defs = {n.name: n for n in page.tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    notes = {t.start[0]: t.string.lstrip('# ') for t in tokenize.tokenize(page.file.open('rb').readline) if t.type == tokenize.COMMENT}
    def sign(f):
        args = ast.unparse(f.args)
        return f'{f.name}({re.sub(r"^self(, )?", "", args)})' + (f' -> {ast.unparse(f.returns)}' if f.returns else '')
    out = []
    for name in (n for n in page.names if n in defs):
        n = defs[name]
        out.append(f'### {name} {{#api-{name}}}')
        if isinstance(n, ast.FunctionDef): out.append(raw(f'<pre class="signature">{html.escape(sign(n))}</pre>{say(ast.get_docstring(n))}')); continue
        bases = ', '.join(map(ast.unparse, n.bases))
        marks = ''.join(f'@{ast.unparse(d)}\n' for d in n.decorator_list)
        rows = [f'<tr><td><code>{f.target.id}</code><td>{html.escape(ast.unparse(f.annotation))}<td>'
                f'{html.escape(ast.unparse(f.value)) if f.value else ""}<td>{html.escape(notes.get(f.end_lineno, ""))}' for f in n.body
                if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
        table = f'<table class="fields"><thead><tr><th>field<th>type<th>default<th>what</thead>{"".join(rows)}</table>' if rows else ''
        methods = ''.join(f'<dt><code>{html.escape("." + (f.name if any(ast.unparse(d).endswith("property") for d in f.decorator_list) else sign(f)))}</code>'
                          f'<dd>{say(ast.get_docstring(f))}' for f in n.body if isinstance(f, ast.FunctionDef) and f.name[0] != '_')
        out.append(raw(f'<pre class="signature">{html.escape(marks)}class {name}{f"({bases})" if bases else ""}</pre>{say(ast.get_docstring(n))}{table}'
                       + (f'<dl>{methods}</dl>' if methods else '')))
    return '\n\n'.join(['## API', *out]) if out else ''

def pandoc(md, scratch):
    "Markdown -> (table of contents, body), both HTML."
    import pypandoc
    template = scratch / 'parts.html'
    if not template.exists(): template.write_text('$toc$\n<!--body-->\n$body$')
    done = subprocess.run([pypandoc.get_pandoc_path(), '-f', DIALECT, '-t', 'html5', '--mathml', '--toc', '--toc-depth=3', '--wrap=none', '--standalone',
                           f'--template={template}', '--metadata=title=x'], input=md, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f'pandoc: {done.stderr}')
    return done.stdout.split('\n<!--body-->\n')

def link_names(body, page, where):
    "`fit` in the text becomes a link to its description, once a page knows it."
    def link(m):
        to = where.get(html.unescape(m[1]).removesuffix('()'))
        return f'<a class="name" href="{page.up}{to}">{m[0]}</a>' if to and to.split('#')[0] != page.url else m[0]
    parts = re.split(r'(<pre.*?</pre>|<a .*?</a>|<h\d.*?</h\d>)', body, flags=re.S)
    return ''.join(p if i % 2 else re.sub(r'<code>([\w.()]+)</code>', link, p) for i, p in enumerate(parts))

def fix_links(body, page, out):
    "Notebooks link to notebooks; on the site, pages link to pages, and files of the repository are copied along."
    def fix(m):
        to = html.unescape(m[2])
        if re.match(r'[a-z]+:|#|//', to): return m[0]
        path, _, anchor = to.partition('#')
        file = (page.path.parent / unquote(path)).resolve()
        if file == ROOT / 'README.md': file = NBS / 'index.ipynb'
        if file == ROOT / 'CONTRIBUTING.md': new = 'contributing.html'
        elif file.suffix == '.ipynb' and NBS in file.parents: new = file.relative_to(NBS).with_suffix('.html').as_posix()
        elif file.is_file() and ROOT in file.parents and not (out / path).exists():
            new = 'files/' + file.relative_to(ROOT).as_posix().lstrip('.')
            (out / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, out / new)
        else: return m[0]
        return f'{m[1]}="{page.up}{new}{"#" + anchor if anchor else ""}"'
    return re.sub(r'\b(href|src)="([^"]*)"', fix, body)

def entries(page, body):
    "What the search looks through: one entry a heading."
    strip = lambda s: ' '.join(html.unescape(re.sub(r'<[^>]+>', ' ', s)).split())
    body = re.sub(r'<(pre|figure|math|style)\b.*?</\1>', ' ', body, flags=re.S)
    parts = re.split(r'<h[23] [^>]*?id="([^"]+)"[^>]*>(.*?)</h[23]>', body, flags=re.S)
    rows = [[page.title, page.what, page.url, strip(parts[0])[:1500]]]
    return rows + [[page.title, strip(h), f'{page.url}#{a}', strip(t)[:1500]] for a, h, t in zip(parts[1::3], parts[2::3], parts[3::3])]

SHELL = '''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{head}</title><meta name="description" content="{what}">
<script>document.documentElement.dataset.theme = localStorage.getItem('theme') || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')</script>
<link rel="icon" href="{up}icon.svg"><link rel="stylesheet" href="{up}site.css"><script src="{up}site.js" data-up="{up}" defer></script>
</head>
<body>
<a class="skip" href="#content">Skip to the text</a>
<header><button id="menu" aria-label="Contents" aria-expanded="false">&#9776;</button><a class="brand" href="{up}index.html">{name}</a>
<div id="find"><input type="search" placeholder="Search  ( / )" aria-label="Search" autocomplete="off"><div id="hits" role="listbox"></div></div>
<button id="theme" aria-label="Light or dark">&#9680;</button></header>
<div class="frame">
<nav id="pages" aria-label="Pages">{nav}</nav>
<main id="content"><h1>{title}</h1>{lead}{meta}
{body}
<footer>{around}</footer></main>
<aside aria-label="On this page">{toc}</aside>
</div>
</body>
</html>
'''

def navigation(sections, page):
    link = lambda p: f'<a href="{page.up}{p.url}"{" aria-current=page" if p is page else ""}>{html.escape("Home" if p.url == "index.html" else p.title)}</a>'
    return ''.join((f'<h2>{name}</h2>' if name else '') + '<ul>' + ''.join(f'<li>{link(p)}' for p in pages) + '</ul>' for name, pages in sections if pages)

def write(page, i, order, sections, where, out, scratch, config):
    "Renders one page into `out`; returns its search entries."
    count = [0]
    def picture(data, suffix):
        count[0] += 1
        path = Path(f'{page.url[:-5]}_files') / f'{count[0]}.{suffix}'
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
        return f'{path.parent.name}/{path.name}'
    if page.cells: md = '\n\n'.join([page.rest, markdown(page.cells[1:], picture), api(page) if page.tree else ''])
    else: md = re.sub(r'^# .*\n', '', page.path.read_text())
    toc, body = pandoc(md, scratch)
    body = fix_links(link_names(body, page, where), page, out)
    body = re.sub(r'(<table(?! class="fields").*?</table>)', r'<div class="scroll">\1</div>', body, flags=re.S)
    lead = f'<p class="lead">{say(page.what)[3:-4]}</p>' if page.what else ''
    meta = f'<p class="meta">module <code>{page.module}</code> &middot; notebook <code>nbs/{page.rel.as_posix()}</code> &middot; <span class="edge">exported code</span></p>' if page.module else ''
    near = [(order[j], a) for j, a in ((i - 1, 'prev'), (i + 1, 'next')) if 0 <= j < len(order)]
    around = ''.join(f'<a rel="{a}" href="{page.up}{p.url}">{"&larr; " if a == "prev" else ""}{html.escape(p.title)}{" &rarr;" if a == "next" else ""}</a>' for p, a in near)
    name = config['website']['title']
    (out / page.url).parent.mkdir(parents=True, exist_ok=True)
    (out / page.url).write_text(SHELL.format(
        head=html.escape(page.title if page.title == name else f'{page.title} - {name}'), what=html.escape(page.what, quote=True), up=page.up, name=name,
        nav=navigation(sections, page), title=html.escape(page.title), lead=fix_links(link_names(lead, page, where), page, out), meta=meta, body=body, around=around,
        toc=f'<h2>On this page</h2>{toc}' if '<li>' in toc else ''), encoding='utf-8')
    return entries(page, body)

def build(out):
    "The whole site through pandoc into the folder `out`; returns the number of pages."
    import yaml
    config, sections = yaml.safe_load((ROOT / '_quarto.yml').read_text()), site()
    order = [p for _, pages in sections for p in pages]
    where, twice = {}, set()
    for p in order:
        if not p.module: continue
        where[p.module] = p.url
        defs = {n.name for n in p.tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        for n in p.names:
            if n in where: twice.add(n)
            where[n] = where[f'{p.module}.{n}'] = f'{p.url}#api-{n}' if n in defs else p.url
    for n in twice: where.pop(n, None)
    for p in order:
        if p.module: where.setdefault(p.rel.stem, p.url)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        pandoc('', Path(scratch))
        found = list(pool.map(lambda x: write(x[1], x[0], order, sections, where, out, Path(scratch), config), enumerate(order)))
    (out / 'search.js').write_text('window.PAGES = ' + json.dumps([e for es in found for e in es], ensure_ascii=False), encoding='utf-8')
    for f in ('site.css', 'site.js', 'icon.svg'): shutil.copy(HERE / f, out)
    if (NBS / 'images').exists(): shutil.copytree(NBS / 'images', out / 'images')
    return len(order)

def faults(out):
    "list of str: dead internal links, pictures without a description, resources fetched from outside."
    ids, seen = {}, []
    pages = {p: p.read_text(encoding='utf-8') for p in out.rglob('*.html')}
    for p, page in pages.items(): ids[p] = set(re.findall(r'\bid="([^"]+)"', page)) | set(re.findall(r'\bname="([^"]+)"', page))
    for p, page in pages.items():
        name = p.relative_to(out)
        bare = re.sub(r'<pre.*?</pre>|<code.*?</code>', '', page, flags=re.S)
        for tag, kind, to in re.findall(r'<(\w+)\b[^>]*?\b(href|src)="([^"]*)"', page):
            to = html.unescape(to)
            if re.match(r'(https?:)?//', to):
                if tag != 'a': seen.append(f'{name}: <{tag}> loads {to}')
                continue
            if re.match(r'data:|mailto:', to): continue
            file = (p.parent / unquote(urlsplit(to).path)).resolve() if urlsplit(to).path else p
            if not file.is_file(): seen.append(f'{name}: dead link {to}')
            elif urlsplit(to).fragment and file in ids and unquote(urlsplit(to).fragment) not in ids[file]: seen.append(f'{name}: no such place {to}')
        seen += [f'{name}: a picture without alt text: {m[:80]}' for m in re.findall(r'<img\b[^>]*>', bare) if not re.search(r'\balt="[^"]', m)]
        seen += [f'{name}: {m}' for m in re.findall(r'(?:@import|url\()\s*[\'"]?https?://[^\s)]+', bare)]
    for f in [*out.rglob('*.css'), *out.glob('site.js')]: seen += [f'{f.name}: {m}' for m in re.findall(r'https?://[^\s)\'"]+', f.read_text())]
    return seen

if __name__ == '__main__':
    say_ = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    say_.add_argument('--out', type=Path, default=ROOT / '_docs', help='where the site goes')
    say_.add_argument('--pandoc', action='store_true', help='through pandoc even where Quarto is installed')
    say_.add_argument('--sidebar', action='store_true', help='only write nbs/sidebar.yml')
    a = say_.parse_args()
    (NBS / 'sidebar.yml').write_text(sidebar())
    if a.sidebar: sys.exit()
    if shutil.which('quarto') and not a.pandoc: sys.exit(subprocess.run([Path(sys.executable).with_name('nbdev-docs')], cwd=ROOT).returncode)
    start = time.time()
    n, wrong = build(a.out), faults(a.out)
    for w in wrong: print(f'docs: {w}', file=sys.stderr)
    print(f'docs: {n} pages in {time.time() - start:.0f} s -> {os.path.relpath(a.out / "index.html")}' + (f'; {len(wrong)} faults, see above' if wrong else ''))
    sys.exit(bool(wrong))
