import { readFileSync } from 'node:fs'
import { imageName } from './lib/format/names.ts'
import { encodePagemap, type PagemapEntry } from './lib/format/pagemap.ts'
import { flatMemory } from './lib/store/flat-memory.ts'
import { memorySnapshot } from './lib/store/memory.ts'
import { EXTENT, openPool } from './lib/store/pool.ts'

const rss = () => (Number(readFileSync('/proc/self/statm', 'utf8').split(' ')[1]) * 4096) / 2 ** 20
const pool = openPool(2 ** 31)
function put(sink: any, name: string, bytes: Buffer) {
  const w = sink.open(imageName(name))
  let at = 0
  while (at < bytes.length) {
    const r = w.room(bytes.length - at)
    const p = bytes.subarray(at, at + r.length)
    r.set(p)
    w.wrote(p.length)
    at += p.length
  }
  w.end({ name: imageName(name), size: bytes.length, digest: 0n })
}
const inv = readFileSync('fixtures/images/inventory.img')
for (let k = 0; k < 3; k++) {
  const sink = memorySnapshot(pool)
  const flat = flatMemory(sink)
  const N = 65536
  const full: PagemapEntry[] = [{ vaddr: 0x7f0000000000, pages: N, flags: 4 }]
  put(sink, 'pagemap-1.img', Buffer.concat([...encodePagemap(1, full)]))
  put(sink, 'pages-1.img', Buffer.alloc(N * 4096, 1))
  sink.complete()
  let t = performance.now()
  await flat.round()
  console.log('round 1', (performance.now() - t).toFixed(1), 'used', pool.used / 2 ** 20, 'rss', rss())
  const every: PagemapEntry[] = []
  for (let i = 0; i < N; i += 2)
    every.push(
      { vaddr: 0x7f0000000000 + i * 4096, pages: 1, flags: 4 },
      { vaddr: 0x7f0000000000 + (i + 1) * 4096, pages: 1, flags: 1 },
    )
  put(sink, 'pagemap-1.img', Buffer.concat([...encodePagemap(1, every)]))
  put(sink, 'pages-1.img', Buffer.alloc(N * 2048, 2))
  console.log('before round 2: used', pool.used / 2 ** 20, 'rss', rss())
  sink.complete()
  t = performance.now()
  await flat.round()
  console.log('round 2', (performance.now() - t).toFixed(1), 'used', pool.used / 2 ** 20, 'rss', rss())
  // last: odd pages new, in part
  const last: PagemapEntry[] = []
  for (let i = 0; i < N; i += 4)
    last.push(
      { vaddr: 0x7f0000000000 + i * 4096, pages: 3, flags: 1 },
      { vaddr: 0x7f0000000000 + (i + 3) * 4096, pages: 1, flags: 4 },
    )
  put(sink, 'pagemap-1.img', Buffer.concat([...encodePagemap(1, last)]))
  put(sink, 'pages-1.img', Buffer.alloc(N * 1024, 3))
  put(sink, 'inventory.img', inv)
  sink.complete()
  t = performance.now()
  await flat.last()
  console.log('last', (performance.now() - t).toFixed(1), 'used', pool.used / 2 ** 20)
  t = performance.now()
  await flat.settle()
  console.log(
    'settle',
    (performance.now() - t).toFixed(1),
    'used',
    pool.used / 2 ** 20,
    'rss',
    rss(),
    'held',
    sink.held / 2 ** 20,
  )
  let n = 0
  t = performance.now()
  for (const _ of sink.images.get(imageName('pages-1.img'))!.pieces) n++
  console.log('pieces', n, (performance.now() - t).toFixed(1))
  sink.drop()
  console.log('dropped', pool.used, rss())
}
