/**
 * Dumps that fail late, with all images out, and copies that were asked for: what of them may be restored. Played with
 * the real CRIU.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { askCache } from '../../lib/cache/admin.ts'
import { within } from '../expect.ts'
import { real } from '../support/criu.ts'
import { patternLoad } from '../support/loads.ts'
import { root, start } from '../support/run.ts'
import { command, copyOf, type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/late')
const load = patternLoad(8)
const failing = ['--action-script', join(root, 'test', 'support', 'fail-dump.sh')]
/** Whoever is told only at his time-out is not told in this test. */
const patient = ['--timeout', '100']

/** With our action script or without. */
type Gated = boolean

function dumpArgs({ source, load: { pid } }: Stage, gated: Gated, ...options: string[]): string[] {
  const script = gated ? ['--action-script', join(source, 'post-dump')] : []
  return ['dump', '--stream', '-t', String(pid), '-D', source, ...script, ...options]
}

async function held({ target }: Stage): Promise<string[]> {
  const listed = await askCache(target, { ls: true })
  if (typeof listed !== 'object') throw new Error('no list')
  return listed.holdings.map(({ id, state }) => `${id} ${state}`)
}

function failures(criu: string): void {
  const play = (body: (stage: Stage) => Promise<void>) => () => staged(criu, load, body)

  /** Those who wait for web-1 and cannot hold it: a client of the cache, and a criu in its directory. */
  function waiting(stage: Stage, port: string) {
    const from = ['-v', '--from', `127.0.0.1:${port}`, '--snapshot', 'web-1', ...patient]
    return [
      stage.there(command('restore-from-socket'), [...from, '--to-dir', join(stage.folder, 'images')]),
      stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target]),
    ] as const
  }

  for (const gated of [true, false]) {
    const how = gated ? 'held by our script' : 'without our script'

    test(
      `a user's own script fails at post-dump, ${how}: nothing to restore, and who waits is told at once`,
      play(async (stage) => {
        const { cache, port } = await stage.cache(...patient, '--snapshot', 'web-1')
        const proxy = await stage.proxy(port, '--snapshot', 'web-1', ...patient)
        const [client, restore] = waiting(stage, port)
        await cache.says(/waiting for web-1/)
        await client.says(/waiting/)
        const dumped = await stage.here(criu, dumpArgs(stage, gated, ...failing)).ended
        assert.is(dumped.code, 255, dumped.stderr + proxy.stderr())
        await proxy.says(/snapshot web-1 failed: criu has ended, and the process that it dumped runs on/)
        assert.is((await within(client.ended)).code, 4, client.stderr())
        assert.match(client.stderr(), /the dump that was on its way failed/)
        assert.not((await within(restore.ended)).code === 0)
        assert.equal(await held(stage), [])
        await stage.stayed()
        const again = await stage.here(criu, dumpArgs(stage, gated)).ended
        assert.is(again.code, 0, again.stderr + proxy.stderr())
        await proxy.says(/handed over: the source is gone/)
      }),
    )

    for (const [name, options, environment] of [
      ['-R', ['-R'], {}],
      ['a configuration file', [], { HOME: 'home' }],
    ] as const) {
      test(
        `a copy that ${name} asks for, ${how}, can be restored`,
        play(async (stage) => {
          const home = join(stage.folder, 'home')
          mkdirSync(join(home, '.criu'), { recursive: true })
          writeFileSync(join(home, '.criu', 'default.conf'), 'leave-running\n')
          const { port } = await stage.cache()
          const proxy = await stage.proxy(port, '--snapshot', 'web-1')
          const env = environment.HOME === undefined ? undefined : { HOME: home }
          const dumping = start(criu, dumpArgs(stage, gated, ...options), { ...(env && { env }), cwd: stage.folder })
          const dumped = await dumping.ended
          assert.is(dumped.code, 0, dumped.stderr + proxy.stderr())
          await proxy.says(/handed over: the source runs on, criu left it running, the cache keeps its images/)
          await stage.load.runsOn()
          assert.equal(await held(stage), ['web-1 sealed'])
          const restored = await stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target]).ended
          assert.is(restored.code, 0, restored.stderr)
          assert.is(await copyOf(stage), 'runs')
        }),
      )
    }
  }

  /** `dump-to-stdout --listen` into a restore on the target, and a criu that dumps. */
  async function listened(stage: Stage, ...options: string[]) {
    const enter = stage.host.enter.join(' ')
    const receiver = `${enter} ${command('restore-from-socket')} --from - --to-dir ${stage.folder}/images`
    const line = `dump-to-stdout -v --listen -D ${stage.source} | ${receiver}`
    const piped = start('bash', ['-o', 'pipefail', '-c', line])
    await piped.says(/listening on/)
    const dumped = await stage.here(criu, dumpArgs(stage, false, ...options)).ended
    return { dumped, piped: await within(piped.ended) }
  }

  test(
    "a user's own script fails at post-dump into dump-to-stdout --listen: the stream has no end",
    play(async (stage) => {
      const { dumped, piped } = await listened(stage, ...failing)
      assert.is(dumped.code, 255, dumped.stderr)
      assert.is(piped.code, 4, piped.stderr)
      assert.match(piped.stderr, /dump-to-stdout: error: criu has ended, and the process that it dumped runs on/)
      assert.match(piped.stderr, /restore-from-socket: error: the source gave up: criu has ended/)
      await stage.stayed()
    }),
  )

  for (const options of [[], ['-R']]) {
    test(
      `dump-to-stdout --listen, criu dump ${options.join('') || 'that kills'}`,
      play(async (stage) => {
        const { dumped, piped } = await listened(stage, ...options)
        assert.is(dumped.code, 0, dumped.stderr)
        assert.is(piped.code, 0, piped.stderr)
        if (options.length > 0) await stage.load.runsOn()
        else await stage.load.gone
      }),
    )
  }

  test(
    "a user's own script fails at post-dump of dump-to-stdout --via: no copy, and criu says why",
    play(async (stage) => {
      const enter = stage.host.enter.join(' ')
      const via = `${enter} ${command('restore-from-socket')} --from - -D ${join(stage.folder, 'held')}`
      const args = ['-t', String(stage.load.pid), '-D', stage.source, '--via', via, '--', ...failing]
      const ran = await stage.here('dump-to-stdout', args).ended
      assert.is(ran.code, 5, ran.stderr)
      assert.match(ran.stderr, /error: criu dump failed \(exit code 255\)/)
      await stage.stayed()
    }),
  )

  for (const [gated, options, code] of [
    [true, failing, 255],
    [false, failing, 255],
    [true, ['-R'], 0],
    [true, [], 0],
  ] as const) {
    const how = `${gated ? 'with' : 'without'} our script${options.length > 0 ? `, ${options[0]}` : ''}`
    test(
      `by the wire of criu --remote, ${how}`,
      play(async (stage) => {
        const wire = ['--wire', 'criu-remote']
        const { cache, port } = await stage.cache(...wire)
        const proxy = await stage.proxy(port, ...wire)
        const dumped = await stage.here(criu, dumpArgs(stage, gated, ...options)).ended
        assert.is(dumped.code, code, dumped.stderr + proxy.stderr() + cache.stderr())
        if (code === 0) {
          await cache.says(/ sealed: /)
          await proxy.says(/ sent: /)
        } else {
          await proxy.says(/failed: criu has ended, and the process that it dumped runs on/)
          await cache.says(/the stream ended without inventory.img/)
          assert.equal(await held(stage), [])
          await stage.stayed()
        }
      }),
    )
  }
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else failures(real.path)

test.run()
