/** A chain of ten rounds, each with a fifth of the pages; writes what memory it took as JSON. */
import { readFileSync } from 'node:fs'
import { PAGE_BYTES, pageFlag } from '../../lib/format/pagemap.ts'
import { ChainMemory } from '../../lib/store/chain-memory.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { Pool } from '../../lib/store/pool.ts'
import { type Brief, pagemap, put } from '../support/rounds.ts'

const PAGES = 2 ** 14
const ROUND = PAGES / 4

/** Bytes of the pool's mappings that are in memory: the others' come and go with JavaScript's garbage. */
function resident(): number {
  let bytes = 0
  let rss = 0
  for (const line of readFileSync('/proc/self/smaps', 'utf8').split('\n')) {
    const [name, value] = line.split(/:\s+/)
    if (name === 'Rss') rss = Number.parseInt(value ?? '', 10)
    // Left out of core dumps and of forked children: nobody else here does both.
    if (name === 'VmFlags' && /\bdc\b.*\bdd\b/.test(value ?? '')) bytes += rss * 1024
  }
  return bytes
}

const pool = new Pool(2 ** 30)
const sink = new MemorySnapshot(pool, true)
const flat = new ChainMemory(sink)
const fresh = Buffer.alloc(ROUND * PAGE_BYTES, 1)
let [most, mostResident] = [0, 0]
for (let round = 0; round < 10; round++) {
  const every = PAGES / ROUND
  const briefs: Brief[] = Array.from({ length: PAGES }, (_, at) => [at, 1, pageFlag.parent])
  for (let at = 0; at < ROUND; at++)
    (briefs[(at * every + ((at * 7 + round) % every)) % PAGES] as Brief)[2] = pageFlag.present
  const full: Brief[] = [[0, PAGES, pageFlag.present]]
  put(sink, {
    'pagemap-1.img': pagemap(1, round === 0 ? full : briefs),
    'pages-1.img': round === 0 ? Buffer.alloc(PAGES * PAGE_BYTES, 1) : fresh,
  })
  most = Math.max(most, pool.used)
  mostResident = Math.max(mostResident, resident())
  sink.complete()
  await flat.round()
}
const figures = { process: PAGES * PAGE_BYTES, round: fresh.length, used: pool.used, resident: resident() }
process.stdout.write(JSON.stringify({ ...figures, most, mostResident }))
