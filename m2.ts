import { encodePagemap, readPagemap, type PagemapEntry } from './lib/format/pagemap.ts'
import { runsOf, overlay, entriesOf } from './lib/format/runs.ts'
const N = 100000
const last: PagemapEntry[] = [], base: PagemapEntry[] = []
for (let i = 0; i < N; i++) { const v = 0x7f0000000000 + i * 8192; last.push({ vaddr: v, pages: 1, flags: 4 }, { vaddr: v + 4096, pages: 1, flags: 1 }); base.push({ vaddr: v, pages: 2, flags: 4 }) }
const fin = (g: any) => { for (;;) { const s = g.next(); if (s.done) return s.value } }
const bytes = [...encodePagemap(1, last)]
const under = fin(runsOf([base], [[2**40, 2 * N]]))
for (let k = 0; k < 8; k++) {
 let t = performance.now()
 const lists = [...readPagemap(bytes).batches]; const a = performance.now() - t; t = performance.now()
 const own = fin(runsOf(lists, [[2**41, N]])); const b = performance.now() - t; t = performance.now()
 const u: any[] = []; const m = fin(overlay(own, under, (x, y) => u.push([x, y]))); const c = performance.now() - t; t = performance.now()
 let out = 0; for (const p of encodePagemap(1, entriesOf(m))) out += p.length; const d = performance.now() - t
 console.log(m.count, 'decode', a.toFixed(1), 'runs', b.toFixed(1), 'overlay', c.toFixed(1), 'encode', d.toFixed(1))
}
