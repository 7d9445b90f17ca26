"nbs/index.ipynb -> README.md, its pictures into nbs/images/."
import re
import sys

from render import NBS, ROOT, markdown, opening, read

def build():
    "(text of README.md, {path of a picture: bytes})."
    images, cells = {}, read(NBS / 'index.ipynb')
    def picture(data, suffix):
        path = NBS / 'images' / f'index-{len(images) + 1}.{suffix}'
        images[path] = data
        return f'images/{path.name}'
    title, what, rest = opening(cells)
    first = {'cell_type': 'markdown', 'source': f'# {title}\n\n> {what}\n\n{rest}'}
    text = markdown([first, *cells[1:]], picture, html_out=False)
    def link(m):
        to = m[2]
        return m[0] if re.match(r'https?:|#|mailto:', to) else f'{m[1]}({to[3:] if to.startswith("../") else "nbs/" + to})'
    parts = re.split(r'(^```.*?^```$)', text, flags=re.S | re.M)         # links outside the code blocks
    return ''.join(p if i % 2 else re.sub(r'(\])\(([^)\s]+)\)', link, p) for i, p in enumerate(parts)) + '\n', images

if __name__ == '__main__':
    text, images = build()
    for old in (NBS / 'images').glob('index-*'):
        if old not in images: old.unlink()
    for path, data in images.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (ROOT / 'README.md').write_text(text)
    print(f'README.md: {len(text.splitlines())} lines, {len(images)} pictures', file=sys.stderr)
