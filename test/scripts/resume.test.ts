/** The commands, with a relay between them that breaks: a dump waits and goes on, or fails in time. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { writeAll } from '../../lib/kernel/transfer.ts'
import { within } from '../expect.ts'
import { type Relay, startRelay } from '../support/breaking-relay.ts'
import { startCache, startProxy } from '../support/daemons.ts'
import { type FakeDump, fakeDump, fakeRestore } from '../support/fake-criu.ts'
import { eventually, type Running, temporary } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite('scripts/resume')

interface Stage {
  relay: Relay
  proxy: Running
  cache: Running
  dump: () => FakeDump
  restore: () => ReturnType<typeof fakeRestore>
}

async function staged(timeout: string, body: (stage: Stage) => Promise<void>): Promise<void> {
  const { path, remove } = temporary()
  const [source, target] = [join(path, 'source'), join(path, 'target')]
  const { cache, port } = await startCache(target, ['--timeout', timeout])
  const relay = await startRelay(port)
  const proxy = await startProxy(source, relay.port, ['--timeout', timeout])
  try {
    await body({
      relay,
      proxy,
      cache,
      dump: () => fakeDump(join(source, 'streamer-capture.sock')),
      restore: () => fakeRestore(join(target, 'streamer-serve.sock')),
    })
  } finally {
    await Promise.all([proxy.stop(), cache.stop()])
    relay.close()
    remove()
  }
}

const images = { 'pages-1.img': pattern(24_000_000, 1), 'core-1.img': pattern(2000, 2), 'empty.img': Buffer.alloc(0) }

async function dumpAll(criu: FakeDump, given: Record<string, Buffer> = images): Promise<void> {
  await Promise.all(Object.entries(given).map(([name, bytes]) => criu.image(name, bytes)))
  await criu.image('inventory.img', Buffer.from('inventory'))
  criu.close()
}

async function arrived({ restore }: Stage): Promise<void> {
  const criu = restore()
  for (const [name, bytes] of Object.entries(images)) assert.ok((await criu.image(name))?.equals(bytes), name)
  criu.close()
}

test('a link that is cut three times while CRIU dumps: the proxy goes on, and every image arrives', () =>
  staged('20', async (stage) => {
    const { relay, proxy, cache, dump } = stage
    relay.plan({ up: 3_000_000, how: 'cut' }, { up: 9_000_000, how: 'cut' }, { up: 2_000_000, how: 'cut' })
    await dumpAll(dump())
    await proxy.says(/sent and sealed by the cache: 4 images/)
    await cache.says(/sealed: 4 images, 22.9 MiB/)
    await arrived(stage)
    assert.is(relay.links, 4)
    // What the cache had acknowledged was not sent again: more than its last MiB and the sockets' buffers is not lost.
    assert.ok(relay.up < 24_000_000 + 3 * 9_000_000, `${relay.up} bytes went to the cache`)
    const peak = Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${proxy.child.pid}/status`, 'utf8'))?.[1])
    assert.ok(peak < 150 * 1024, `the proxy's peak is ${peak} KiB`)
  }))

test('a link that is cut while the cache speaks: no word of its is lost', () =>
  staged('20', async ({ relay, proxy, cache, dump }) => {
    for (let down = 0; down < 260; down += 13) {
      relay.plan({ down, how: 'cut' })
      const before = cache.stderr().split('sealed: 2 images').length
      await dumpAll(dump(), { 'name.img': Buffer.from(String(down)) })
      await eventually(
        () => cache.stderr().split('sealed: 2 images').length > before || undefined,
        `sealing at ${down}`,
      )
      await eventually(
        () =>
          proxy.stderr().split('sent and sealed').length === proxy.stderr().split('handed over').length || undefined,
        `the end at ${down}`,
      )
    }
    assert.not.match(proxy.stderr(), /failed/)
  }))

test('a link that falls silent is left for another', () =>
  staged('8', async (stage) => {
    const { relay, proxy, dump } = stage
    relay.plan({ up: 5_000_000, how: 'mute' }, { down: 200, how: 'mute' })
    await dumpAll(dump())
    await proxy.says(/sent and sealed by the cache: 4 images/)
    await arrived(stage)
    assert.ok(relay.links >= 3)
  }))

for (const how of ['cut', 'mute'] as const) {
  test(`a relay that stays dead (${how}): the dump fails within the time-out, the cache gives the id free`, () =>
    staged('2', async ({ relay, proxy, cache, dump, restore }) => {
      relay.plan({ up: 3_000_000, how })
      const criu = dump()
      const pipe = criu.open('pages-1.img')
      const writing = writeAll(pipe, pattern(60_000_000)).catch((reason: Error) => reason)
      await eventually(() => relay.up >= 3_000_000 || undefined, 'the break')
      relay.die(how)
      assert.instance(await within(writing), Error, 'CRIU gets EPIPE')
      closeFd(pipe)
      criu.close()
      await proxy.says(/failed: .*did not come back within 2 s/)
      await cache.says(/failed: .*did not come back within 2 s/)
      relay.plan()
      await dumpAll(dump(), { 'name.img': Buffer.from('next') })
      await cache.says(/sealed: 2 images/)
      const next = restore()
      assert.is((await next.image('name.img'))?.toString(), 'next')
      next.close()
    }))
}

test('a target that stands still and never greets does not hold the source for ever', () =>
  staged('2', async ({ relay, proxy, dump }) => {
    relay.die('mute')
    const criu = dump()
    const pipe = criu.open('pages-1.img')
    assert.instance(await writeAll(pipe, pattern(60_000_000)).catch((reason: Error) => reason), Error)
    await proxy.says(/failed: .*did not come back within 2 s/)
    closeFd(pipe)
    criu.close()
  }))

test('links that greet and then carry nothing do not hold the source for ever', () =>
  staged('4', async ({ relay, proxy, dump }) => {
    const greeted = { down: 24 + 28 + 28, how: 'mute' } as const
    relay.plan({ up: 3_000_000, how: 'cut' }, ...Array.from({ length: 50 }, () => greeted))
    const criu = dump()
    const pipe = criu.open('pages-1.img')
    assert.instance(await within(writeAll(pipe, pattern(60_000_000)).catch((reason: Error) => reason)), Error)
    await proxy.says(/failed: .*did not come back within 4 s/)
    assert.ok(relay.links > 2)
    closeFd(pipe)
    criu.close()
  }))

test('a proxy that is stopped while the link is broken ends at once, and the dump fails', () =>
  staged('60', async ({ relay, proxy, dump }) => {
    relay.plan({ up: 3_000_000, how: 'cut' })
    const criu = dump()
    const pipe = criu.open('pages-1.img')
    const writing = writeAll(pipe, pattern(60_000_000)).catch((reason: Error) => reason)
    await eventually(() => relay.up >= 3_000_000 || undefined, 'the break')
    relay.die('mute')
    assert.is((await within(proxy.stop())).code, 143)
    assert.instance(await within(writing), Error)
    closeFd(pipe)
    criu.close()
  }))

test.run()
