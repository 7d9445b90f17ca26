// Search, theme and contents of the documentation site. Works from disk: nothing is fetched from outside.
const $ = s => document.querySelector(s), root = document.documentElement, up = document.currentScript.dataset.up
$('#theme').onclick = () => localStorage.setItem('theme', root.dataset.theme = root.dataset.theme === 'dark' ? 'light' : 'dark')
$('#menu').onclick = e => e.currentTarget.setAttribute('aria-expanded', $('#pages').classList.toggle('open'))
$('#pages [aria-current]')?.scrollIntoView({ block: 'center' }); scrollTo(0, location.hash ? scrollY : 0)

const box = $('#find input'), hits = $('#hits'), esc = s => s.replace(/[&<>]/g, c => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[c])
const load = () => window.PAGES ? Promise.resolve() : new Promise(done => document.head.append(Object.assign(document.createElement('script'), { src: up + 'search.js', onload: done })))
const score = ([title, head, url, body], words) => words.reduce((sum, w) => {
  const t = title.toLowerCase(), h = head.toLowerCase(), n = (t === w) * (url.includes('#') ? 10 : 60) + t.includes(w) * 5 + (h === w) * 30 + h.includes(w) * 8 + body.toLowerCase().includes(w)
  return sum && n ? sum + n : 0
}, 1)
async function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean)
  if (!words.length) return hits.replaceChildren()
  await load()
  const found = PAGES.map(p => [score(p, words), p]).filter(x => x[0]).sort((a, b) => b[0] - a[0]).slice(0, 12)
  const bold = s => esc(s).replace(new RegExp(words.map(w => esc(w).replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|'), 'gi'), '<mark>$&</mark>')
  hits.innerHTML = found.map(([, [title, head, url, body]]) => {
    const at = Math.max(0, body.toLowerCase().indexOf(words[0]) - 50)
    return `<a role="option" href="${up}${url}"><b>${esc(title)}</b> ${bold(head)}<small>${at ? '…' : ''}${bold(body.slice(at, at + 150))}</small></a>`
  }).join('') || '<p>Nothing found.</p>'
}
box.oninput = search
box.onfocus = load
box.onkeydown = e => {
  const all = [...hits.querySelectorAll('a')], on = all.findIndex(a => a.classList.contains('on'))
  if (e.key === 'Escape') { box.value = ''; search(); box.blur() }
  if (e.key === 'Enter') (all[on] || all[0])?.click()
  if (e.key === 'ArrowDown' || e.key === 'ArrowUp') {
    e.preventDefault(); all[on]?.classList.remove('on')
    const next = all[(on + (e.key === 'ArrowDown' ? 1 : -1) + all.length) % all.length]
    next?.classList.add('on'); next?.scrollIntoView({ block: 'nearest' })
  }
}
addEventListener('keydown', e => { if (e.key === '/' && !/INPUT|TEXTAREA/.test(e.target.tagName)) { e.preventDefault(); box.focus() } })
addEventListener('click', e => { if (!$('#find').contains(e.target)) hits.replaceChildren() })
const marks = new Map([...document.querySelectorAll('aside a')].map(a => [decodeURIComponent(a.hash.slice(1)), a]))
const watch = new IntersectionObserver(seen => seen.forEach(x => {
  if (x.isIntersecting) { marks.forEach(a => a.classList.remove('here')); marks.get(x.target.id)?.classList.add('here') }
}), { rootMargin: '-64px 0px -75% 0px' })
marks.forEach((_, id) => { const h = document.getElementById(id); if (h) watch.observe(h) })
