/** Run by a test: a pool whose process may map nothing more. */
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { EXTENT, Pool } from '../../lib/store/pool.ts'

const pool = new Pool(2 ** 40)
const sink = new MemorySnapshot(pool)
// libuv's threads and what Node maps later must be there before.
await sink.reserve(8 * EXTENT)
const kib = Number(/^VmSize:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1])
spawnSync('prlimit', ['--pid', `${process.pid}`, `--as=${kib * 1024 + 48 * 2 ** 20}`])
const ready = await sink.reserve(64 * EXTENT)
let fault = ''
try {
  for (;;) pool.take()
} catch (error) {
  fault = (error as { code: string }).code
}
new Pool(64 * EXTENT, 64 * EXTENT)
console.log(JSON.stringify({ ready: ready / EXTENT, used: pool.used / EXTENT, fault }))
