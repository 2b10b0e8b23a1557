/** The hand-over with the real CRIU: one live copy, or a stopped one that is named, whatever breaks. */
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { childrenOf, commandLine } from '../../lib/kernel/process.ts'
import { real } from '../support/criu.ts'
import { patternLoad } from '../support/loads.ts'
import { relay } from '../support/relay.ts'
import { eventually, root, run, shell, start } from '../support/run.ts'
import { command, copyOf, originalOf, type Stage, staged } from '../support/stage.ts'

const test = suite('real-criu/handover')
const load = patternLoad(8)

function handOvers(criu: string): void {
  const play = (body: (stage: Stage) => Promise<void>) => () => staged(criu, load, body)
  const viaOf = ({ host, folder }: Stage): string =>
    `${host.enter.join(' ')} ${command('restore-from-socket')} --from - -D ${join(folder, 'held')}`
  const restoreArgs = ({ target }: Stage): string[] => [
    ...['restore', '--stream', '-d', '-D', target],
    ...['--action-script', join(target, 'post-restore')],
  ]

  test(
    'a proxy until running, a cache that restores',
    play(async (stage) => {
      const { cache, port } = await stage.cache('--restore')
      const proxy = await stage.proxy(port, '--until', 'running')
      const dumped = await stage.dump().ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      await proxy.says(/handed over: the source is gone, it runs on the target/)
      await stage.arrived()
      await cache.says(/restored in/)
      const [stopped] = await Promise.all([proxy.stop(), cache.stop()])
      assert.is(stopped.code, 143)
      assert.equal(
        [stage.source, stage.target].flatMap((path) => readdirSync(path)).filter((name) => !name.startsWith('stats-')),
        [],
      )
    }),
  )

  const oldest = join(root, '.criu', 'trixie', 'criu')
  if (existsSync(oldest)) {
    test(
      'a target with CRIU 4.1, which does not read the pagemaps of a newer one',
      play(async (stage) => {
        const { cache, port } = await stage.cache('--restore', '--criu', oldest)
        const proxy = await stage.proxy(port, '--until', 'running')
        const dumped = await stage.dump().ended
        assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
        await stage.arrived()
      }),
    )
  } else console.log('skipped: CRIU 4.1 is not there, no target has it')

  test(
    'a cache that is the first process of a container: the number of a copy that has ended is free again',
    play(async (stage) => {
      const namespace = ['--pid', '--fork', '--mount-proc', '--kill-child']
      const container = start('unshare', [...namespace, 'cache', '--port', '0', '-D', stage.target, '--restore'])
      try {
        const [, port = ''] = await container.says(/listening on 127\.0\.0\.1:(\d+)/)
        const proxy = await stage.proxy(port, '--until', 'running')
        assert.is((await stage.dump().ended).code, 0, proxy.stderr() + container.stderr())
        await proxy.says(/it runs on the target/)
        const [first = 0] = childrenOf(container.child.pid as number)
        // It is a child of its criu until that has ended.
        const isCopy = (pid: number): boolean => commandLine(pid).includes(join(stage.folder, 'load.log'))
        const copy = await eventually(() => childrenOf(first).find(isCopy), 'a copy')
        await stage.load.verify(copy)
        process.kill(copy, 'SIGKILL')
        await eventually(() => !childrenOf(first).includes(copy) || undefined, 'the end of the copy', 5000)
        process.kill(first)
        await container.ended
        assert.match(container.stderr(), /stopped by SIGTERM/)
      } finally {
        await container.stop('SIGKILL')
      }
    }),
  )

  test(
    'a proxy until sealed, a cache that restores: the copy runs only when the source is gone',
    play(async (stage) => {
      const { cache, port } = await stage.cache('--restore')
      const proxy = await stage.proxy(port)
      const dumped = await stage.dump().ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      await cache.says(/restored in/)
      await stage.arrived()
    }),
  )

  test(
    'nothing is frozen before the target is there and has memory ready; a target that never comes stops nothing',
    play(async (stage) => {
      const nobody = '1'
      const lost = await stage.proxy(nobody, '--timeout', '2')
      const failed = stage.dump()
      let looked = 0
      while (failed.child.exitCode === null) {
        assert.is(originalOf(stage), 'runs')
        looked++
        await setTimeout(50)
      }
      assert.ok(looked > 20)
      assert.is.not((await failed.ended).code, 0)
      await lost.says(/failed: cannot connect/)
      await lost.stop()
      await stage.stayed()
      const { cache, port } = await stage.cache('--restore')
      const slow = await relay(port, { at: 'reserve', from: 'source', what: 'stall' })
      await stage.proxy(slow.port, '--until', 'running')
      const dumped = stage.dump()
      await slow.happened
      await setTimeout(300)
      assert.is(originalOf(stage), 'runs')
      slow.mend()
      assert.is((await dumped.ended).code, 0)
      await stage.arrived()
      await cache.stop()
      slow.close()
    }),
  )

  test(
    'a gate that is taken away while criu waits before the freeze: that dump fails, the proxy goes on',
    play(async (stage) => {
      const { port } = await stage.cache('--restore')
      const slow = await relay(port, { at: 'reserve', from: 'source', what: 'stall' })
      const proxy = await stage.proxy(slow.port, '--until', 'running')
      const dumped = stage.dump()
      await slow.happened
      const gate = readdirSync(stage.source).find((name) => name.endsWith('.pre-dump.lock')) ?? ''
      rmSync(join(stage.source, gate))
      slow.mend()
      assert.is.not((await dumped.ended).code, 0)
      await proxy.says(/failed: /)
      await stage.stayed()
      const again = await stage.dump().ended
      assert.is(again.code, 0, again.stderr + proxy.stderr())
      await stage.arrived()
      slow.close()
    }),
  )

  for (const until of ['sealed', 'running']) {
    test(
      `a proxy until ${until}, a plain criu restore with our script`,
      play(async (stage) => {
        const { cache, port } = await stage.cache()
        const proxy = await stage.proxy(port, '--until', until)
        const restoring = stage.there(criu, restoreArgs(stage))
        await cache.says(/waiting for/)
        const dumped = await stage.dump().ended
        assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
        const restored = await restoring.ended
        assert.is(restored.code, 0, restored.stderr)
        await stage.arrived()
      }),
    )
  }

  test(
    'a plain criu restore without our script gets the snapshot when the source is gone, and not before',
    play(async (stage) => {
      const { cache, port } = await stage.cache('--timeout', '3')
      const proxy = await stage.proxy(port, '--until', 'running', '--timeout', '2')
      const early = stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target])
      await cache.says(/waiting for/)
      const refused = await stage.dump().ended
      assert.not(refused.code === 0, 'nobody held the copy')
      await proxy.says(/the target did not restore the tasks within 2 s/)
      assert.not((await early.ended).code === 0)
      await stage.stayed()
      await proxy.stop()
      const patient = await stage.proxy(port)
      const late = stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target])
      assert.is((await stage.dump().ended).code, 0, patient.stderr())
      assert.is((await late.ended).code, 0, late.stderr())
      await stage.arrived()
    }),
  )

  test(
    'a waiting restore-from-socket',
    play(async (stage) => {
      const { cache, port } = await stage.cache()
      const from = ['-v', '--from', `127.0.0.1:${port}`, '-D', join(stage.folder, 'held')]
      const waiting = stage.there(command('restore-from-socket'), from)
      await waiting.says(/waiting/)
      const proxy = await stage.proxy(port, '--until', 'running')
      const dumped = await stage.dump().ended
      assert.is(dumped.code, 0, dumped.stderr + proxy.stderr() + cache.stderr())
      assert.is((await waiting.ended).code, 0, waiting.stderr())
      await stage.arrived()
    }),
  )

  for (const until of ['running', 'sealed']) {
    test(
      `dump-to-stdout --via, until ${until}`,
      play(async (stage) => {
        const args = ['-v', '-t', String(stage.load.pid), '--until', until, '--via', viaOf(stage), '-D', stage.source]
        const ran = await run('dump-to-stdout', args)
        assert.is(ran.code, 0, ran.stderr)
        assert.match(ran.stderr, /handed over: the source is gone, it runs on the target/)
        assert.is(ran.stdout.length, 0)
        await stage.arrived()
        assert.equal(readdirSync(join(stage.folder, 'held')), ['stats-restore'])
      }),
    )
  }

  test(
    'dump-to-stdout --via, and the target refuses: CRIU says why, and the process runs on',
    play(async (stage) => {
      const ran = await shell(`dump-to-stdout -t $PID -D ${stage.source} --via '${viaOf(stage)} -- --bogus'`, {
        env: { PID: String(stage.load.pid) },
      })
      assert.not(ran.code === 0)
      assert.match(ran.stderr, /dump-to-stdout: error: the target refused: criu restore failed/)
      await stage.stayed()
    }),
  )

  test(
    'dump-to-stdout --via a command that is not there, or ends, or says nothing',
    play(async (stage) => {
      for (const [via, code, text] of [
        ['/nonexistent/ssh', 3, /the target closed the link|went away/],
        ['true', 3, /the target closed the link|went away/],
        ['echo hello', 4, /not a criu-ferry stream|ended/],
        ['sleep 15', 6, /the target did not make memory ready within 2 s/],
      ] as const) {
        const args = ['-t', String(stage.load.pid), '-D', stage.source, '--timeout', '2', '--via', via]
        const ran = await run('dump-to-stdout', args)
        assert.is(ran.code, code, `${via}: ${ran.stderr}`)
        assert.match(ran.stderr, text)
        await stage.load.runsOn()
      }
      const copy = await run('dump-to-stdout', ['-t', String(stage.load.pid), '--via', 'true', '--', '-R'])
      assert.is(copy.code, 2)
      assert.match(copy.stderr, /-R and --via do not go together/)
    }),
  )

  test(
    'a second restore of a snapshot that was handed over: refused, one copy runs',
    play(async (stage) => {
      const { cache, port } = await stage.cache('--timeout', '1')
      await stage.proxy(port)
      const first = stage.there(criu, restoreArgs(stage))
      await cache.says(/waiting for/)
      assert.is((await stage.dump().ended).code, 0)
      assert.is((await first.ended).code, 0)
      await cache.says(/handed over/)
      assert.not((await stage.there(criu, restoreArgs(stage)).ended).code === 0)
      await stage.arrived()
    }),
  )

  for (const early of [true, false]) {
    test(
      `a held copy ${early ? 'and --release-early: the memory of its images is back' : 'keeps its images'}`,
      play(async (stage) => {
        const more = early ? ['--release-early'] : []
        const { cache, port } = await stage.cache('--restore', ...more)
        const between = await relay(port, { at: 'ready', from: 'target', what: 'stall' })
        const proxy = await stage.proxy(between.port, '--until', 'running')
        const dumping = stage.dump().ended
        await between.happened
        await eventually(
          () => {
            process.kill(stage.cachePid(), 'SIGUSR1')
            const said = [...cache.stderr().matchAll(/snapshots: 1, chains: 0, memory: ([0-9.]+) MiB of/g)].at(-1)
            return (said !== undefined && Number(said[1]) < 8 === early) || undefined
          },
          `memory of 29 MiB that is ${early ? '' : 'not '}given back`,
        )
        between.mend()
        assert.is((await dumping).code, 0, proxy.stderr())
        await proxy.says(/it runs on the target/)
        between.close()
        await stage.arrived()
      }),
    )
  }

  test(
    'criu dump -R: a copy, which nobody gets who did not ask after it',
    play(async (stage) => {
      const { cache, port } = await stage.cache('--timeout', '2')
      const proxy = await stage.proxy(port)
      const early = stage.there(criu, restoreArgs(stage))
      await cache.says(/waiting for/)
      assert.is((await stage.dump('-R').ended).code, 0)
      await proxy.says(/handed over: the source runs on, criu left it running/)
      await stage.load.runsOn()
      assert.not((await early.ended).code === 0)
      assert.is(await copyOf(stage), 'none')
      const asked = await stage.there(criu, restoreArgs(stage)).ended
      assert.is(asked.code, 0, asked.stderr)
      assert.is(await copyOf(stage), 'runs')
    }),
  )
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else handOvers(real.path)

test.run()
