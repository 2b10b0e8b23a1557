/**
 * A criu in a pid namespace that a daemon cannot see: it has no number there, so nobody can hold it or see its tasks
 * die.
 */
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { real } from '../support/criu.ts'
import { patternLoad } from '../support/loads.ts'
import { type Running, start } from '../support/run.ts'
import { command, type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/invisible')
const load = patternLoad(8)

function invisible(criu: string): void {
  const play = (body: (stage: Stage) => Promise<void>) => () => staged(criu, load, body)

  /** A proxy inside of the other pid namespace, for a criu outside of it. */
  async function blindProxy({ there, source }: Stage, port: string): Promise<Running> {
    const proxy = there(command('proxy'), ['--port', port, '-D', source, '--until', 'running', '--timeout', '5'])
    await proxy.says(/streamer-capture/)
    return proxy
  }

  test(
    'a proxy that cannot see the criu which dumps, with our script: the process runs on',
    play(async (stage) => {
      const { port } = await stage.cache('--restore')
      const proxy = await blindProxy(stage, port)
      const dumped = await stage.dump().ended
      assert.not(dumped.code === 0)
      const [line] = await proxy.says(/^.* failed: .*$/m)
      assert.match(line, /cannot see the tasks that this criu dumps/)
      await stage.stayed()
    }),
  )

  test(
    'a proxy that cannot see the criu which dumps, without our script: the process runs on',
    play(async (stage) => {
      const { port } = await stage.cache('--restore')
      const proxy = await blindProxy(stage, port)
      const args = ['dump', '--stream', '-t', String(stage.load.pid), '-D', stage.source]
      const dumped = await start(criu, args, { cwd: stage.folder }).ended
      assert.not(dumped.code === 0)
      const [line] = await proxy.says(/^.* failed: .*$/m)
      assert.match(line, /cannot see the tasks that this criu dumps/)
      await stage.stayed()
    }),
  )

  test(
    'a cache that cannot see the criu which restores: our script refuses it, and another one gets the images',
    play(async (stage) => {
      const { cache, port } = await stage.cache()
      const proxy = await stage.proxy(port)
      const script = ['--action-script', join(stage.target, 'post-restore')]
      const args = ['restore', '--stream', '-d', '-D', stage.target, ...script]
      assert.is((await stage.dump().ended).code, 0, proxy.stderr())
      // Outside of the target the copy wants the number of the source.
      await stage.load.gone
      const blind = start(criu, args, { cwd: stage.folder })
      const refused = await blind.ended
      assert.not(refused.code === 0)
      assert.match(refused.stderr + refused.stdout.toString(), /criu-ferry does not know this criu/)
      await cache.says(/failed: |served/)
      const seen = await stage.there(criu, args).ended
      assert.is(seen.code, 0, seen.stderr + cache.stderr())
      await stage.arrived()
    }),
  )
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else invisible(real.path)

test.run()
