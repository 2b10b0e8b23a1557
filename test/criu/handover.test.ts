/** The hand-over with the real CRIU: one live copy, or a stopped one that is named, whatever breaks. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { real } from '../support/criu.ts'
import { startCache, startProxy } from '../support/daemons.ts'
import { type Host, startHost } from '../support/host.ts'
import { patternLoad, type Started } from '../support/loads.ts'
import { eventually, type Running, root, run, start, temporary } from '../support/run.ts'

const test = suite('hand-over')
const load = patternLoad(8)

interface Stage {
  folder: string
  source: string
  target: string
  load: Started
  host: Host
  /** Throws unless the load goes on on the target, and nowhere else. */
  arrived(): Promise<void>
  /** Throws unless the load goes on here, and nowhere else. */
  stayed(): Promise<void>
}

async function staged(body: (stage: Stage) => Promise<void>): Promise<void> {
  const { path, remove } = temporary()
  const host = await startHost()
  const started = await load.start(path)
  const stage: Stage = {
    folder: path,
    source: join(path, 'source'),
    target: join(path, 'target'),
    load: started,
    host,
    async arrived() {
      await started.gone
      await started.verify(host.outerPid(started.pid))
    },
    async stayed() {
      await started.runsOn()
      assert.throws(() => host.outerPid(started.pid), undefined, 'nothing on the target')
    },
  }
  try {
    await body(stage)
  } finally {
    started.kill()
    await host.stop()
    remove()
  }
}

function handOvers(criu: string): void {
  const dump = ({ load, source, folder }: Stage, ...options: string[]): Running =>
    start(
      criu,
      [
        'dump',
        '--stream',
        '-t',
        String(load.pid),
        '-D',
        source,
        '--action-script',
        join(source, 'post-dump'),
        ...options,
      ],
      {
        cwd: folder,
      },
    )
  const there = ({ host }: Stage, program: string, args: string[]): Running => {
    const [enter = '', ...options] = host.enter
    return start(enter, [...options, program, ...args])
  }
  const cacheThere = async (stage: Stage, ...options: string[]) => {
    const cache = there(stage, join(root, 'scripts', 'bin', 'cache'), ['--port', '0', '-D', stage.target, ...options])
    const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
    await cache.says(/streamer-serve/)
    return { cache, port }
  }

  test('a proxy until running, a cache that restores', () =>
    staged(async (stage) => {
      const { cache, port } = await cacheThere(stage, '--restore')
      const proxy = await startProxy(stage.source, port, ['--until', 'running'])
      const dumped = await dump(stage).ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      await proxy.says(/handed over: the source is gone, it runs on the target/)
      await stage.arrived()
      await Promise.all([proxy.stop(), cache.stop()])
    }))
  test('a proxy until sealed, a plain criu restore with our script', () =>
    staged(async (stage) => {
      const { cache, port } = await cacheThere(stage)
      const proxy = await startProxy(stage.source, port)
      const restoring = there(stage, criu, [
        'restore',
        '--stream',
        '-d',
        '-D',
        stage.target,
        '--action-script',
        join(stage.target, 'post-restore'),
      ])
      const dumped = await dump(stage).ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      const restored = await restoring.ended
      assert.is(restored.code, 0, restored.stderr)
      await stage.arrived()
      await Promise.all([proxy.stop(), cache.stop()])
    }))
  test('dump-to-stdout --via', () =>
    staged(async (stage) => {
      const via = `${stage.host.enter.join(' ')} ${join(root, 'scripts', 'bin', 'restore-from-socket')} -v --from -`
      const ran = await run('dump-to-stdout', ['-v', '-t', String(stage.load.pid), '--via', via])
      console.log(ran.stderr)
      assert.is(ran.code, 0, ran.stderr)
      await stage.arrived()
    }))
  test('a waiting restore-from-socket', () =>
    staged(async (stage) => {
      const { cache, port } = await cacheThere(stage)
      const waiting = there(stage, join(root, 'scripts', 'bin', 'restore-from-socket'), [
        '-v',
        '--from',
        `127.0.0.1:${port}`,
      ])
      await waiting.says(/waiting/)
      const proxy = await startProxy(stage.source, port, ['--until', 'running'])
      const dumped = await dump(stage).ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      assert.is((await waiting.ended).code, 0, waiting.stderr())
      await stage.arrived()
      await Promise.all([proxy.stop(), cache.stop()])
    }))
}

if (typeof real === 'string') {
  console.log(`skipped: ${real}`)
} else handOvers(real.path)

test.run()
