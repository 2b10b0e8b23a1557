/** The real CRIU, and a link that breaks while it dumps: it waits, and the process arrives or runs on. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { spliceAllowed } from '../../lib/stream/link.ts'
import { acrossRelay, dumpBy } from '../support/across-relay.ts'
import { startRelay } from '../support/breaking-relay.ts'
import { real } from '../support/criu.ts'
import { startProxy } from '../support/daemons.ts'
import { patternLoad } from '../support/loads.ts'
import { eventually, start, temporary } from '../support/run.ts'

const test = suite('real-criu/resume')
const load = patternLoad(32)

/** By read(2) and the like; what splice(2) moves is not among it. */
function bytesRead(pid: number): number {
  return Number(/rchar: (\d+)/.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1])
}

function resumes(criu: string): void {
  const cut = { how: 'cut' } as const
  const whole = { up: Number.POSITIVE_INFINITY, ...cut }
  /** The first link, the second and the third break; of four connections one does. */
  const breaks = {
    1: [
      { up: 4_000_000, ...cut },
      { up: 9_000_000, ...cut },
      { down: 300, ...cut },
    ],
    4: [
      ...[whole, { up: 1_000_000, ...cut }, whole, whole],
      ...[whole, whole, whole, { up: 2_000_000, ...cut }],
      ...[{ down: 150, ...cut }, whole, whole, whole],
    ],
  }
  for (const [connections, options] of [
    [1, []],
    [1, ['--until', 'running']],
    [1, ['--until', 'running', '--no-checksum']],
    [4, ['--until', 'running', '--connections', '4']],
  ] as const) {
    const what = connections === 1 ? 'a link that is cut' : `${connections} connections, one of them cut`
    test(`${what} three times, ${options.join(' ')}: the process arrives`, async () => {
      await acrossRelay(load, options, breaks[connections], async (scene) => {
        const { host, started, cache, proxy, relay, dump } = scene
        const before = bytesRead(proxy.child.pid as number)
        const dumped = await dump(criu)
        assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
        const read = bytesRead(proxy.child.pid as number) - before
        assert.is(
          read < 16e6,
          spliceAllowed && options.some((option) => option === '--no-checksum'),
          `the proxy has read ${read} bytes`,
        )
        await proxy.says(/handed over: the source is gone/)
        assert.is(relay.links, 4 * connections)
        await cache.says(/restored/)
        await started.gone
        await started.verify(host.outerPid(started.pid))
      })
    })
  }

  test('without checksums, a process that dies while its pages are under way: nothing is sealed', async () => {
    const { path, remove } = temporary()
    const source = join(path, 'source')
    const started = await load.start(path)
    const cache = start('cache', ['--port', '0', '-D', join(path, 'target')])
    const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
    const relay = await startRelay(port)
    relay.plan({ up: 53_000_000, how: 'mute' })
    const proxy = await startProxy(source, relay.port, ['--no-checksum', '--timeout', '20'])
    try {
      const dumping = dumpBy(criu, started.pid, path, source)
      await eventually(() => relay.up > 52_000_000 || undefined, 'the silence of the link')
      // The rest goes into our pipes, and criu to its gate; after 5 s the proxy makes another link.
      await new Promise((resolve) => setTimeout(resolve, 1500))
      started.kill()
      assert.is.not((await dumping).code, 0)
      await proxy.says(/failed/)
      assert.not.match(cache.stderr(), /sealed:/)
    } finally {
      started.kill()
      await Promise.all([proxy.stop(), cache.stop()])
      relay.close()
      remove()
    }
  })

  for (const how of ['cut', 'mute'] as const) {
    test(`a link that stays dead (${how}): the dump fails within the time-out, and the process runs on`, async () => {
      const { path, remove } = temporary()
      const source = join(path, 'source')
      const started = await load.start(path)
      const cache = start('cache', ['--port', '0', '-D', join(path, 'target'), '--timeout', '3'])
      const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
      const relay = await startRelay(port)
      // The second link, and each after it, breaks at once.
      relay.plan({ up: 6_000_000, how }, ...Array.from({ length: 100 }, () => ({ up: 0, how })))
      const proxy = await startProxy(source, relay.port, ['--timeout', '3'])
      try {
        const dumped = await dumpBy(criu, started.pid, path, source)
        assert.is.not(dumped.code, 0)
        await proxy.says(/failed: .*did not come back within 3 s/)
        await started.runsOn()
        await started.whole()
        await cache.says(/failed: .*did not come back within 3 s/)
      } finally {
        started.kill()
        await Promise.all([proxy.stop(), cache.stop()])
        relay.close()
        remove()
      }
    })
  }
}

if (typeof real === 'string') {
  console.log(`skipped: ${real}`)
} else resumes(real.path)

test.run()
