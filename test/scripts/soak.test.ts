/**
 * Many snapshots through one proxy and one cache: neither may keep a descriptor of what is over. A thousand, or as many
 * as FERRY_SOAK says.
 *
 * A cache drops no snapshot, and one with a byte in it holds 2 MiB; so most of these have no bytes, some have, and some
 * fail after bytes were sent, which must come back.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { formatSize, parseSize } from '../../lib/size.ts'
import { daemons } from '../support/daemons.ts'
import { eventually, type Running, statusIs } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('scripts/soak')

const rounds = Number(process.env.FERRY_SOAK ?? 1000)
const WARM_UP = 100
/** Snapshots with bytes: the first, and one of so many. */
const EVERY = 100
/** Dumps that fail, and restores: one of so many. */
const OFTEN = 10

interface Size {
  fds: number
  /** Resident memory without that of the images. */
  rss: number
}

test(`${rounds} snapshots: descriptors as after the first ${WARM_UP}, memory within bounds`, async () => {
  const both = await daemons({ cache: ['--max-memory', '8G'] })
  const pages = pattern(100_000)
  let [failed, served] = [0, 0]

  /** Until that daemon has said `words` so many times. */
  const follow = (name: 'proxy' | 'cache', words: string, count: number) => {
    const said = (): number => both[name].stderr().split(words).length - 1
    return eventually(() => said() >= count || undefined, `${words} of ${name}, ${count} times`, 60_000)
  }

  async function round(number: number): Promise<void> {
    const criu = both.dump()
    if (number % EVERY === 0) await criu.image('pages-1.img', pages)
    await criu.image('inventory.img', Buffer.alloc(0))
    criu.close()
    if (number % OFTEN !== 0) return
    await follow('proxy', 'sealed by the cache', number + 1)
    const broken = both.dump()
    await broken.image('pages-1.img', pages)
    broken.close()
    await follow('proxy', 'inventory.img is missing', ++failed)
    await follow('cache', 'the source gave up', failed)
    const restore = both.restore()
    assert.is((await restore.image('inventory.img'))?.length, 0)
    restore.close()
    await follow('cache', ' served: ', ++served)
  }

  async function sizeOf({ child }: Running, images: number): Promise<Size> {
    const fds = (): number => readdirSync(`/proc/${child.pid}/fd`).length
    for (let before = -1; before !== fds(); await new Promise((resolve) => setTimeout(resolve, 500))) before = fds()
    const rss = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1]
    return { fds: fds(), rss: Number(rss) * 1024 - images }
  }

  /** When `count` snapshots are here and nothing is under way. */
  async function sizes(count: number): Promise<{ proxy: Size; cache: Size }> {
    await follow('proxy', 'sealed by the cache', count)
    await statusIs(both.proxy, /status: dumps in progress: 0,/)
    const line = new RegExp(
      `snapshots: ${count}, chains: 0, memory: ([\\d.]+ \\w+) of .*, links: 0, silent: 0, held for ` +
        `peers: 0 B, restores that wait: 0`,
    )
    const [, used = ''] = await statusIs(both.cache, line)
    return { proxy: await sizeOf(both.proxy, 0), cache: await sizeOf(both.cache, parseSize(used.replace(' ', ''))) }
  }

  for (let number = 0; number < WARM_UP; number++) await round(number)
  const warm = await sizes(WARM_UP)
  const begun = performance.now()
  for (let number = WARM_UP; number < rounds; number++) await round(number)
  const end = await sizes(rounds)
  const each = (performance.now() - begun) / (rounds - WARM_UP)
  for (const name of ['proxy', 'cache'] as const) {
    const [before, after] = [warm[name], end[name]]
    const grown = after.rss - before.rss
    const kib = (grown / (rounds - WARM_UP) / 1024).toFixed(1)
    const memory = `RSS without images ${formatSize(before.rss)} -> ${formatSize(after.rss)}, ${kib} KiB a snapshot`
    console.log(`${name}: fds ${before.fds} -> ${after.fds}, ${memory}, ${each.toFixed(1)} ms each`)
    assert.is(after.fds, before.fds, `descriptors of the ${name}`)
    assert.ok(grown < 100 * 2 ** 20 + rounds * 20 * 1024, `the ${name} grew by ${formatSize(grown)}`)
  }
  await both.stop()
})

test.run()
