/**
 * pre-copy from its first round to its end, with the real CRIU for the last dump: this kernel may track no changes, so
 * the rounds are made up.
 */
import { readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { real } from '../support/criu.ts'
import { patternLoad } from '../support/loads.ts'
import { eventually, type Running, root, start } from '../support/run.ts'
import { originalOf, type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/pre-copy')
const load = patternLoad(8)

/** What this pre-copy has made for itself, on a tmpfs and elsewhere. */
function left({ child: { pid } }: Running): string[] {
  return ['/run', '/dev/shm', tmpdir()].flatMap((parent) =>
    readdirSync(parent).filter((name) => name.startsWith(`criu-ferry.${pid}.`)),
  )
}

function preCopying(criu: string): void {
  const preCopy = ({ folder, load: { pid } }: Stage, port: string, seconds: number, ...more: string[]): Running => {
    const program = join(root, 'test', 'support', 'untracked-criu.py')
    const options = ['-D', join(folder, 'owed'), '--criu', program, '--floor', '0', '--max-rounds', '2']
    const env = { REAL_CRIU: criu, ROUND_SECONDS: String(seconds) }
    return start('pre-copy', ['-v', '-t', String(pid), '--port', port, ...options, ...more], { env })
  }

  test('two rounds and a dump: handed over, and nothing is left', () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache('--restore')
      const copying = preCopy(stage, port, 0)
      const { code, stderr } = await copying.ended
      assert.is(code, 0, stderr)
      assert.match(stderr, /round 1: 1 pages.*round 2: 1 pages.*handed over: the source is gone/s)
      await cache.says(/restored in/)
      await stage.arrived()
      assert.equal([...left(copying), ...readdirSync(join(stage.folder, 'owed'))], [])
    }))

  test('a signal in the second round: the process runs on, the cache forgets the first, and nothing is left', () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache()
      const copying = preCopy(stage, port, 1)
      await copying.says(/round 1:/)
      assert.is((await copying.stop()).code, 143)
      await cache.says(/the source gave up: no other round follows/)
      assert.equal(left(copying), [])
      await stage.stayed()
    }))

  test('a cache that dies between two rounds: the process runs on, and nothing is left', () =>
    staged(criu, load, async (stage) => {
      const { port } = await stage.cache()
      const copying = preCopy(stage, port, 1, '--timeout', '5')
      await copying.says(/round 1:/)
      process.kill(stage.cachePid(), 'SIGKILL')
      assert.is((await copying.ended).code, 3)
      assert.equal(left(copying), [])
      await stage.stayed()
    }))

  test('a signal in the last dump, and a cache that is silent: the process runs on, and only the verdict is left', () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache()
      const copying = preCopy(stage, port, 0, '--until', 'running')
      await cache.says(/ sealed: \d\d images/)
      await eventually(() => originalOf(stage) === 'frozen' || undefined, 'the freeze')
      process.kill(stage.cachePid(), 'SIGSTOP')
      const ending = copying.stop()
      const thawed = eventually(() => originalOf(stage) === 'runs' || undefined, 'the thaw', 2000)
      const { code, stderr } = await ending
      // Whoever entered the target for it has stopped with it.
      for (const pid of [stage.cachePid(), cache.child.pid as number]) process.kill(pid, 'SIGCONT')
      await thawed
      assert.is(code, 143)
      assert.match(stderr, /error: stopped by SIGTERM\n$/)
      assert.equal(left(copying), [])
      assert.is(readdirSync(join(stage.folder, 'owed')).length, 1)
      await stage.stayed()
    }))
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else preCopying(real.path)

test.run()
