/**
 * Who holds a copy, with the real CRIU: one at a time, under an id of its own, and whoever is killed leaves nothing
 * frozen.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { real } from '../support/criu.ts'
import { startProxy } from '../support/daemons.ts'
import { patternLoad, type Started } from '../support/loads.ts'
import { type Relay, relay, type Trouble } from '../support/relay.ts'
import { eventually, type Running, start } from '../support/run.ts'
import { command, copyOf, originalOf, type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/holders')
const load = patternLoad(8)
const patience = ['--timeout', '4']

interface Scene extends Stage {
  relay: Relay
  cacheRun: Running
  cachePort: string
  proxyRun: Running
  id: string
}

/** A hand-over until running of the snapshot `web-1`, which is about to begin. */
async function begin(stage: Stage, trouble: Trouble | undefined, options: string[]): Promise<Scene> {
  const { cache, port } = await stage.cache(...patience, ...options)
  const between = await relay(port, trouble)
  const id = 'web-1'
  const proxy = await stage.proxy(between.port, '--until', 'running', '--snapshot', id, ...patience)
  return { ...stage, relay: between, cacheRun: cache, cachePort: port, proxyRun: proxy, id }
}

/** Our number for the criu that waits at a gate in the cache's work directory. */
async function criuAtGate({ target, host }: Stage): Promise<number> {
  const pattern = /(\d+)\.post-restore\.held$/
  const found = (): string | undefined =>
    readdirSync(target, { recursive: true, encoding: 'utf8' }).find((name) => pattern.test(name))
  const name = await eventually(found, 'a gate')
  return host.outerPid(Number(pattern.exec(name)?.[1]))
}

async function none(stage: Stage): Promise<void> {
  for (let time = 0; time < 30 && (await copyOf(stage)) !== 'none'; time++);
  assert.is(await copyOf(stage), 'none')
}

function holders(criu: string): void {
  const play = (trouble: Trouble | undefined, options: string[], body: (scene: Scene) => Promise<void>) => () =>
    staged(criu, load, async (stage) => {
      const scene = await begin(stage, trouble, options)
      await body(scene).finally(scene.relay.close)
    })
  const waiting = ({ there, cachePort, folder }: Scene): Running =>
    there(command('restore-from-socket'), [
      ...['-v', '--from', `127.0.0.1:${cachePort}`, '-D', join(folder, 'held')],
      ...patience,
    ])
  const restoring = ({ there, target }: Scene): Running =>
    there(criu, ['restore', '--stream', '-d', '-D', target, '--action-script', join(target, 'post-restore')])
  const readyIsLost: Trouble = { at: 'ready', from: 'target', what: 'stall' }

  /** A dump of another process by a proxy of its own, under the id of the first: refused. */
  async function refusedBeside({ folder, cachePort, id }: Scene, other: Started): Promise<void> {
    const source = join(folder, 'other')
    const proxy = await startProxy(source, cachePort, ['--until', 'running', '--snapshot', id, ...patience])
    try {
      const options = ['-t', String(other.pid), '-D', source, '--action-script', join(source, 'post-dump')]
      const dumped = await start(criu, ['dump', '--stream', ...options], { cwd: folder }).ended
      assert.not(dumped.code === 0)
      const [line] = await proxy.says(/^.* failed: .*$/m)
      assert.match(line, /snapshot web-1 failed: the target refused: a snapshot web-1 is here already/)
      await other.runsOn()
    } finally {
      await proxy.stop()
    }
  }

  test(
    'a cache that restores, and a restore-from-socket that waits for the snapshot: one of them restores',
    play(undefined, ['--restore', '-v'], async (scene) => {
      const client = waiting(scene)
      await client.says(/waiting/)
      const dumped = await scene.dump().ended
      assert.is(dumped.code, 0, scene.proxyRun.stderr() + scene.cacheRun.stderr())
      assert.is((await client.ended).code, 0, client.stderr())
      await scene.arrived()
      assert.not.match(scene.cacheRun.stderr(), /failed|restored in/)
    }),
  )

  test(
    'a restore-from-socket that asks while the cache restores is refused, and harms nobody',
    play(readyIsLost, ['--restore'], async (scene) => {
      const dumping = scene.dump().ended
      await scene.relay.happened
      const client = waiting(scene)
      assert.is((await client.ended).code, 1)
      assert.match(client.stderr(), /refused: snapshot web-1 is holding/)
      assert.is(await copyOf(scene), 'held')
      scene.relay.mend()
      assert.is((await dumping).code, 0, scene.proxyRun.stderr())
      await scene.arrived()
    }),
  )

  test(
    'the id of a held copy is taken, also in the next cache, which has no images of it',
    play({ ...readyIsLost, later: 'refuse' }, ['--restore'], async (scene) => {
      mkdirSync(join(scene.folder, 'second'))
      const other = await load.start(join(scene.folder, 'second'))
      try {
        const dumping = scene.dump().ended
        await scene.relay.happened
        await refusedBeside(scene, other)
        assert.is(await copyOf(scene), 'held')
        process.kill(scene.cachePid(), 'SIGKILL')
        await scene.cacheRun.ended
        const again = scene.there(command('cache'), ['--port', scene.cachePort, '-D', scene.target])
        await again.says(/is held until its source says/)
        await refusedBeside(scene, other)
        assert.is(await copyOf(scene), 'held')
        // What was said meanwhile must not come any more: with it the hand-over would go on.
        assert.not((await dumping).code === 0)
        // The first one's own source is still believed.
        scene.relay.mend()
        await again.says(/the source runs on, the target runs nothing of it/)
        await none(scene)
        await scene.stayed()
      } finally {
        other.kill()
      }
    }),
  )

  test(
    'a criu restore of somebody else is killed while it holds: its frozen tasks end, and another one may restore',
    play(readyIsLost, [], async (scene) => {
      restoring(scene)
      await scene.cacheRun.says(/waiting for/)
      const dumping = scene.dump().ended
      await scene.relay.happened
      assert.is(await copyOf(scene), 'held')
      process.kill(await criuAtGate(scene), 'SIGKILL')
      await none(scene)
      scene.relay.mend()
      assert.is((await dumping).code, 0, scene.proxyRun.stderr())
      const second = await restoring(scene).ended
      assert.is(second.code, 0, second.stderr + scene.cacheRun.stderr())
      await scene.arrived()
    }),
  )

  test(
    'a criu restore that the next cache has taken over is killed: its frozen tasks end',
    play({ ...readyIsLost, later: 'refuse' }, ['--restore'], async (scene) => {
      const dumping = scene.dump().ended
      await scene.relay.happened
      process.kill(scene.cachePid(), 'SIGKILL')
      await scene.cacheRun.ended
      const again = scene.there(command('cache'), ['--port', scene.cachePort, '-D', scene.target])
      await again.says(/is held until its source says/)
      process.kill(await criuAtGate(scene), 'SIGKILL')
      await none(scene)
      await dumping
      await scene.stayed()
    }),
  )

  test('names like ours in the work directories, which are not ours: left alone', () =>
    staged(criu, load, async (stage) => {
      const names = ['ferry-mine/1.post-restore.lock', 'ferry-mine/note', 'ferry-note', '.ferry-restore-note']
      const held = join(stage.folder, 'held')
      for (const directory of [stage.source, stage.target, held]) {
        mkdirSync(join(directory, 'ferry-mine'), { recursive: true })
        for (const name of names) writeFileSync(join(directory, name), 'mine')
      }
      const scene = await begin(stage, undefined, ['--restore'])
      try {
        assert.is((await scene.dump().ended).code, 0, scene.proxyRun.stderr() + scene.cacheRun.stderr())
        await scene.cacheRun.says(/restored in/)
        await scene.arrived()
        // A client with the same kind of directory, which has nothing to wait for.
        assert.not((await waiting(scene).ended).code === 0)
        await Promise.all([scene.proxyRun.stop(), scene.cacheRun.stop()])
        for (const directory of [stage.source, stage.target, held]) {
          for (const name of names) assert.is(readFileSync(join(directory, name), 'utf8'), 'mine', name)
        }
      } finally {
        scene.relay.close()
      }
    }))

  test(
    'the id of a snapshot whose verdict is owed is taken: another process runs on, and the debt stays',
    play({ at: 'verdict', from: 'source', what: 'cut before', later: 'refuse' }, ['--restore'], async (scene) => {
      const dumping = scene.dump().ended
      await scene.relay.happened
      assert.is((await dumping).code, 0)
      const owed = (): string => readFileSync(join(scene.source, 'web-1.owed'), 'utf8')
      const before = owed()
      mkdirSync(join(scene.folder, 'second'))
      const other = await load.start(join(scene.folder, 'second'))
      try {
        // Without our script nobody holds this criu: it must be refused before it has written all.
        const args = ['dump', '--stream', '-t', String(other.pid), '-D', scene.source]
        assert.not((await start(criu, args, { cwd: scene.folder }).ended).code === 0)
        const [line] = await scene.proxyRun.says(/^.* failed: .*$/m)
        assert.match(line, /snapshot web-1 failed: the verdict of an earlier snapshot web-1 is not delivered/)
        await other.runsOn()
        assert.is(owed(), before)
        scene.relay.mend()
        await scene.proxyRun.says(/handed over: the source is gone, it runs on the target/)
        await scene.arrived()
      } finally {
        other.kill()
      }
    }),
  )

  test(
    'a target that does not know the snapshot whose tasks are gone: the verdict stays on disk, and reaches who holds',
    play({ at: 'verdict', from: 'source', what: 'cut before', later: 'refuse' }, ['--restore'], async (scene) => {
      const dumping = scene.dump().ended
      await scene.relay.happened
      assert.is((await dumping).code, 0)
      process.kill(scene.cachePid(), 'SIGKILL')
      await scene.cacheRun.ended
      const stranger = scene.there(command('cache'), ['--port', scene.cachePort, '-D', join(scene.folder, 'stranger')])
      await stranger.says(/streamer-serve/)
      scene.relay.mend()
      const [line] = await scene.proxyRun.says(/^.* failed: .*\bweb-1\b.*$/m)
      assert.not.match(line, /\n/)
      await scene.proxyRun.stop()
      assert.ok(existsSync(join(scene.source, 'web-1.owed')), scene.proxyRun.stderr())
      assert.is(`${originalOf(scene)} ${await copyOf(scene)}`, 'gone held')
      const { cache, port } = await scene.cache()
      await cache.says(/is held until its source says/)
      const next = await scene.proxy(port)
      await next.says(/handed over: the source is gone, it runs on the target/)
      await scene.arrived()
      assert.not(existsSync(join(scene.source, 'web-1.owed')))
    }),
  )
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else holders(real.path)

test.run()
