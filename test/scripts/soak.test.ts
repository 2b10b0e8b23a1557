/**
 * Many snapshots through one proxy and one cache: neither may keep a descriptor of what is over. A thousand, or as many as
 * FERRY_SOAK says.
 *
 * A cache drops no snapshot, and one with a byte in it holds 2 MiB; so most of these have no bytes, some have, and some fail
 * after bytes were sent, which must come back.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { daemons } from '../support/daemons.ts'
import { eventually, type Running } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('soak')

const rounds = Number(process.env.FERRY_SOAK ?? 1000)
const WARM_UP = 100
/** Snapshots with bytes: the first, and one of so many. */
const EVERY = 100
/** Dumps that fail, and restores: one of so many. */
const OFTEN = 10

interface Size {
  fds: number
  rss: number
}

function sizeOf({ child }: Running): Size {
  const rss = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1]
  return { fds: readdirSync(`/proc/${child.pid}/fd`).length, rss: Number(rss) * 1024 }
}

test(`${rounds} snapshots: descriptors as after the first ${WARM_UP}, memory within bounds`, async () => {
  const both = await daemons({ cache: ['--max-memory', '4G'] })
  const pages = pattern(100_000)
  const seen = (daemon: Running, what: string): number => daemon.stderr().split(what).length - 1
  const sealed = { proxy: 0, cache: 0 }
  let [failed, served] = [0, 0]
  // What was said is read once: stderr grows with every round.
  const follow = (name: 'proxy' | 'cache', pattern: string, count: number) =>
    eventually(() => seen(both[name], pattern) >= count || undefined, `${pattern} of ${name}, ${count} times`)

  async function round(number: number): Promise<void> {
    const criu = both.dump()
    if (number % EVERY === 0) await criu.image('pages-1.img', pages)
    await criu.image('inventory.img', Buffer.alloc(0))
    criu.close()
    sealed.proxy = sealed.cache = number + 1
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

  async function sizes(count: number): Promise<{ proxy: Size; cache: Size }> {
    await follow('proxy', 'sealed by the cache', count)
    const settled = async (daemon: Running): Promise<Size> => {
      for (let before = sizeOf(daemon); ; ) {
        await new Promise((resolve) => setTimeout(resolve, 500))
        const after = sizeOf(daemon)
        if (after.fds === before.fds) return after
        before = after
      }
    }
    return { proxy: await settled(both.proxy), cache: await settled(both.cache) }
  }

  for (let number = 0; number < WARM_UP; number++) await round(number)
  const warm = await sizes(WARM_UP)
  const begun = performance.now()
  for (let number = WARM_UP; number < rounds; number++) await round(number)
  const end = await sizes(rounds)
  const ms = performance.now() - begun
  both.proxy.child.kill('SIGUSR1')
  both.cache.child.kill('SIGUSR1')
  await both.proxy.says(/status: dumps in progress: 0,/)
  const [, held] = await both.cache.says(/status: snapshots: (\d+), memory: .*, links: 0, restores that wait: 0/)
  assert.is(Number(held), rounds)
  for (const name of ['proxy', 'cache'] as const) {
    const [before, after] = [warm[name], end[name]]
    const perSnapshot = (after.rss - before.rss) / (rounds - WARM_UP) / 1024
    const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`
    console.log(
      `${name}: fds ${before.fds} -> ${after.fds}, RSS ${mib(before.rss)} -> ${mib(after.rss)}, ` +
        `${perSnapshot.toFixed(1)} KiB a snapshot, ${(ms / (rounds - WARM_UP)).toFixed(1)} ms each`,
    )
    assert.is(after.fds, before.fds, `descriptors of the ${name}`)
    assert.ok(
      after.rss - before.rss < 100 * 2 ** 20 + rounds * 50 * 1024,
      `the ${name} grew by ${mib(after.rss - before.rss)}`,
    )
  }
  await both.stop()
})

test.run()
