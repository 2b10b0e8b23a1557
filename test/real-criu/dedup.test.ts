/** Replicas with the real CRIU: the second one is hardly sent, and outlives what it shares. */
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { askCache } from '../../lib/cache/admin.ts'
import type { Holding } from '../../lib/format/holdings.ts'
import { startRelay } from '../support/breaking-relay.ts'
import { real } from '../support/criu.ts'
import { distinctLoad } from '../support/loads.ts'
import { temporary } from '../support/run.ts'
import { type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/dedup')
const MIB = 2 ** 20
const load = distinctLoad(24)

async function held({ target }: Stage): Promise<Holding[]> {
  const listed = await askCache(target, { ls: true })
  if (typeof listed !== 'object') throw new Error('no list')
  return [...listed.holdings]
}

/** Dumps another process with the same data, which runs on, through the proxy of the stage. */
async function withReplica(stage: Stage, criu: string, body: () => Promise<void>): Promise<void> {
  const { path, remove } = temporary()
  const replica = await load.start(path)
  try {
    const script = ['--action-script', join(stage.source, 'post-dump')]
    const options = ['--stream', '--leave-running', '-t', String(replica.pid), '-D', stage.source]
    const dumped = await stage.here(criu, ['dump', ...options, ...script]).ended
    assert.is(dumped.code, 0, dumped.stderr)
    await body()
  } finally {
    replica.kill()
    remove()
  }
}

function sharing(criu: string): void {
  for (const [cuts, ...ways] of [['whole'], ['whole', '--compress', 'lz4', '--connections', '3'], ['cut']]) {
    test(`${['two replicas', ...ways].join(' ')}, the link is ${cuts}: the donor goes, the other one is whole`, () =>
      staged(criu, load, async (stage) => {
        const { cache, port } = await stage.cache('--dedup')
        const relay = await startRelay(port)
        const proxy = await stage.proxy(relay.port, '--dedup', ...ways)
        await withReplica(stage, criu, async () => {
          await proxy.says(/copy|runs on/)
          const [donor] = await held(stage)
          if (donor === undefined) throw new Error('no donor')
          assert.ok(donor.bytes > 20 * MIB, `${donor.bytes} bytes`)

          const links = relay.links
          // In the offer, and among the references.
          if (cuts === 'cut') relay.plan({ down: 60_000, how: 'cut' }, { up: 200_000, how: 'cut' })
          const dumped = await stage.dump().ended
          if (cuts === 'cut') assert.is(relay.links - links, 3)
          assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
          await proxy.says(/of which the cache had [23]\d\.\d+ MiB/)
          const [, second] = await held(stage)
          if (second === undefined) throw new Error('no second')
          assert.ok(second.bytes < donor.bytes / 2, `${second.bytes} bytes of its own`)
          assert.ok(second.shared > 20 * MIB, `${second.shared} bytes shared`)

          assert.is(await askCache(stage.target, { ls: false, rm: donor.id }), 'done')
          const [left] = await held(stage)
          assert.is(left?.state, 'leaving')
          assert.ok((left?.bytes ?? 0) < donor.bytes && (left?.bytes ?? 0) > 16 * MIB, `${left?.bytes} bytes are left`)
          const restored = await stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target]).ended
          assert.is(restored.code, 0, restored.stderr + cache.stderr())
          await stage.arrived()
          await stage.load.whole(stage.host.outerPid(stage.load.pid))
          await askCache(stage.target, { ls: false, rm: second.id })
          assert.equal(await held(stage), [])
          relay.close()
        })
      }))
  }

  test('a cache that offers nothing: one line, and all is sent', () =>
    staged(criu, load, async (stage) => {
      const { port } = await stage.cache()
      const proxy = await stage.proxy(port, '--dedup')
      assert.is((await stage.dump().ended).code, 0)
      await proxy.says(/the cache offers no pages \(cache --dedup\): all of them are sent/)
      await proxy.says(/handed over/)
      const restored = await stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target]).ended
      assert.is(restored.code, 0, restored.stderr)
      await stage.arrived()
    }))
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else sharing(real.path)

test.run()
