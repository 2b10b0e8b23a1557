/**
 * The fault matrix, with the real CRIU, second part: one of the two ends breaks, is silent, or finds that somebody else
 * was faster.
 */
import { once } from 'node:events'
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { commandLine } from '../../lib/kernel/process.ts'
import { real } from '../support/criu.ts'
import { leftIn, type Matrix, matrix, type Scene, type Seen, settled, stall, timeout } from '../support/faults.ts'
import { patternLoad } from '../support/loads.ts'
import { relay } from '../support/relay.ts'
import { eventually, type Running, root, run, start } from '../support/run.ts'
import { command, copyOf, originalOf, type Stage } from '../support/stage.ts'

const test = suite('real-criu/faults-ends')
const criu = typeof real === 'string' ? '' : real.path

/** A cache in the place of one that is gone; it finds what that one held. */
async function another({ there, cachePort, target }: Scene): Promise<Running> {
  const again = there(command('cache'), ['--port', cachePort, '-D', target])
  await again.says(/is held until its source says/)
  return again
}

/** Its criu has ended, and the cache has tidied up after it. */
async function tidied({ target }: Scene): Promise<void> {
  const left = (): boolean => readdirSync(target).some((name) => name.startsWith('.ferry-restore-'))
  await eventually(() => !left() || undefined, 'the end of the adopted restore')
}

/** The proxy can send no more: its window is full. */
async function stuck({ proxyRun }: Scene): Promise<void> {
  const sent = async (): Promise<string | undefined> => {
    proxyRun.child.kill('SIGUSR1')
    await setTimeout(500)
    return proxyRun
      .stderr()
      .match(/sent: [\d.]+ MiB/g)
      ?.at(-1)
  }
  for (let before = await sent(); ; ) {
    const now = await sent()
    if (now !== undefined && now === before) return
    before = now
  }
}

/** A process in the target's namespaces that has this number there. */
async function squatter(scene: Scene): Promise<Running> {
  const next = `echo ${scene.load.pid - 1} > /proc/sys/kernel/ns_last_pid; sleep 1000 & echo has $! >&2; wait`
  const run = scene.there('sh', ['-c', next])
  await run.says(new RegExp(`has ${scene.load.pid}\\n`))
  return run
}

const script = (name: string): string[] => ['--action-script', join(root, 'test', 'support', name)]
const stopAtGo = ['--', ...script('stop-restorer.sh')]

/** Stops the cache where the link is silent, and waits until the source has given up or let go. */
async function stopAtTrouble(scene: Scene, dumping: Running): Promise<void> {
  await scene.relay.happened
  process.kill(scene.cachePid(), 'SIGSTOP')
  scene.relay.mend()
  await dumping.ended
}

/** The cache was stopped, and with it nsenter, which stops when its child does. */
function goOn({ cachePid, cacheRun }: Scene): void {
  process.kill(cachePid(), 'SIGCONT')
  cacheRun.child.kill('SIGCONT')
}

/** The stopped processes of this folder: the holder, and nsenter. */
function stopped(folder: string): number[] {
  const pids = readdirSync('/proc').map(Number)
  const ours = pids.filter((pid) => commandLine(pid).includes(folder))
  return ours.filter((pid) => /^State:\s+T/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')))
}

function faults(matrix: Matrix): void {
  sourceFaults(matrix)
  targetFaults(matrix)
  rivals(matrix)
  streams(matrix)
}

function sourceFaults({ row }: Matrix): void {
  row('criu dump is killed in the middle', {
    trouble: stall('imageEnd'),
    async act({ relay: { happened }, proxyRun }, dumping) {
      await happened
      dumping.child.kill('SIGKILL')
      await proxyRun.says(/the dump did not finish/)
    },
    end: 'stays',
  })
  row('criu dump is killed while the link is silent and the window is full', {
    trouble: stall('imageEnd'),
    proxy: ['--timeout', '90'],
    async act(scene, dumping) {
      await stuck(scene)
      dumping.child.kill('SIGKILL')
      await scene.proxyRun.says(/the dump did not finish/)
    },
    end: 'stays',
  })
  row('the dump fails before its first image', { dump: ['--action-script', '/bin/false'], end: 'stays' })
  row('the dump fails after its pages', { load: patternLoad(8, 'pipe'), end: 'stays' })
  row('the dump fails when the target has agreed', { dump: script('fail-dump.sh'), end: 'stays' })
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    row(`the proxy gets ${signal} in the middle of a dump`, {
      trouble: stall('imageEnd'),
      async act({ relay: { happened }, proxyRun }) {
        await happened
        await proxyRun.stop(signal)
      },
      end: 'stays',
      ...(signal === 'SIGKILL' && {
        leaves: /^(streamer-capture\.sock|img-proxy\.sock|post-dump|\d+\.post-dump\.(held|lock))$/,
      }),
    })
    row(`the proxy gets ${signal} when the target is ready`, {
      trouble: stall('ready', 'target'),
      async act({ relay: { happened, mend, port }, proxyRun, proxy }) {
        await happened
        await proxyRun.stop(signal)
        mend()
        // The next proxy finds what this one owes.
        const next = await proxy(port, '--until', 'running')
        await next.says(/handed over: the source runs on, the target runs nothing of it/)
        await next.stop()
      },
      end: 'stays',
    })
    row(`the proxy gets ${signal} before the freeze`, {
      trouble: stall('reserved', 'target'),
      async act({ relay: { happened }, proxyRun }) {
        await happened
        await proxyRun.stop(signal)
      },
      end: 'stays',
      ...(signal === 'SIGKILL' && {
        leaves: /^(streamer-capture\.sock|img-proxy\.sock|post-dump|\d+\.p(re|ost)-dump\.(held|lock))$/,
      }),
    })
  }

  row('the proxy is stopped (SIGSTOP) in the middle of a dump, for longer than the time-out', {
    // Far enough that the cache has acknowledged something: before that the proxy may begin anew.
    trouble: { at: 12 * 2 ** 20, from: 'source', what: 'stall' },
    async act({ relay: { happened, mend }, proxyRun, cacheRun }) {
      await happened
      proxyRun.child.kill('SIGSTOP')
      mend()
      await cacheRun.says(/the link did not come back within 4 s/)
      proxyRun.child.kill('SIGCONT')
    },
    end: 'stays',
  })
}

function targetFaults({ row }: Matrix): void {
  row('the cache is killed in the middle of a dump', {
    trouble: { at: 'imageEnd', nth: 3, from: 'source', what: 'cut before', later: 'refuse' },
    async act({ cacheRun, cachePid, relay: { happened } }) {
      await happened
      process.kill(cachePid(), 'SIGKILL')
      await cacheRun.ended
    },
    end: 'stays',
    leaves: /^(streamer-serve\.sock|img-cache\.sock|cache\.sock|post-restore)$|\.owed$/,
  })
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    row(`the cache gets ${signal} while it holds, and another one is started`, {
      trouble: { at: 'ready', from: 'target', what: 'stall', later: 'refuse' },
      async act(scene, dumping) {
        await scene.relay.happened
        process.kill(scene.cachePid(), signal)
        await scene.cacheRun.ended
        await dumping.ended
        assert.is(await copyOf(scene), 'held')
        const again = await another(scene)
        scene.relay.mend()
        await again.says(/handed over: the source runs on, the target runs nothing of it/)
        for (let time = 0; time < 30 && (await copyOf(scene)) !== 'none'; time++);
        await tidied(scene)
        await again.stop()
      },
      end: 'stays',
    })
    row(`the cache gets ${signal} after the source let go, and another one is started`, {
      trouble: { at: 'verdict', from: 'source', what: 'cut before', later: 'refuse' },
      async act(scene) {
        await scene.relay.happened
        process.kill(scene.cachePid(), signal)
        await scene.cacheRun.ended
        const again = await another(scene)
        scene.relay.mend()
        await again.says(/handed over: the source is gone, it runs on the target/)
        await tidied(scene)
        await again.stop()
      },
      end: 'moves',
    })
  }
  row('the memory of the cache is full', { cache: ['--restore', '--max-memory', '8M'], end: 'stays' })
  row('the restore is refused by CRIU: a file is missing', {
    trouble: { at: 'snapshotEnd', from: 'source', what: 'stall' },
    async act({ relay: { happened, mend }, folder }) {
      await happened
      await run('mv', [join(folder, 'load.out'), join(folder, 'load.gone')])
      mend()
    },
    end: 'stays',
  })
  row('the restore is killed', {
    cache: ['--restore', '--', ...script('kill-criu.sh')],
    end: 'stays',
  })
  row('the restore is refused by CRIU: the pid is taken', {
    trouble: { at: 'snapshotEnd', from: 'source', what: 'stall' },
    async act(scene, dumping) {
      await scene.relay.happened
      const taken = await squatter(scene)
      scene.relay.mend()
      await dumping.ended
      process.kill(scene.host.outerPid(scene.load.pid), 'SIGKILL')
      await taken.ended
    },
    end: 'stays',
  })
  row('the cache is stopped (SIGSTOP) before it is ready, and goes on when the source has given up', {
    trouble: { at: 'snapshotEnd', from: 'source', what: 'stall' },
    async act(scene, dumping) {
      await stopAtTrouble(scene, dumping)
      goOn(scene)
    },
    end: 'stays',
  })
  row('the cache is stopped (SIGSTOP) when it is ready, and goes on when the source has let go', {
    trouble: { at: 'ready', from: 'target', what: 'stall' },
    async act(scene, dumping) {
      await stopAtTrouble(scene, dumping)
      await scene.load.gone
      assert.is(await copyOf(scene), 'held')
      goOn(scene)
    },
    end: 'moves',
  })
  row('the cache is stopped (SIGSTOP) when it has let the copy go, and goes on later', {
    cache: ['--restore', ...stopAtGo],
    async act(scene) {
      await scene.proxyRun.says(/waiting for the target, which must learn/)
      assert.is(await copyOf(scene), 'runs')
      goOn(scene)
    },
    end: 'moves',
  })
}

/** Somebody else was faster. */
function rivals({ scene }: Matrix): void {
  scene('two proxies with the same snapshot id, the second while the first one is handed over', async (stage) => {
    const { cache, port } = await stage.cache('--restore', ...timeout)
    const between = await relay(port, { at: 'ready', from: 'target', what: 'stall' })
    const first = await stage.proxy(between.port, '--until', 'running', '--snapshot', 'same')
    const folder = join(stage.folder, 'out')
    mkdirSync(folder)
    const other = await patternLoad(8).start(folder)
    const second = start('proxy', [
      '--port',
      port,
      '-D',
      folder,
      '--until',
      'running',
      '--snapshot',
      'same',
      ...timeout,
    ])
    try {
      const dumping = stage.dump().ended
      await between.happened
      await second.says(/streamer-capture/)
      const held = ['--action-script', join(folder, 'post-dump')]
      const refused = await run(criu, ['dump', '--stream', '-t', String(other.pid), '-D', folder, ...held])
      await other.runsOn()
      await other.whole()
      between.mend()
      const dumped = await dumping
      const { original, copy } = await settled(stage, 'moves', () => first.stderr() + cache.stderr())
      await Promise.all([first.stop(), second.stop(), cache.stop()])
      const left = [...leftIn(stage), ...readdirSync(folder).filter((name) => !/^(load|stats-)/.test(name))]
      return {
        original: `${original}; the second: runs`,
        copy: `${copy}; the second: none`,
        exit: `criu dump ${dumped.code}; the second: ${refused.code}`,
        left,
        commands: { 'first proxy': first, 'second proxy': second, cache },
      }
    } finally {
      other.kill()
      second.child.kill('SIGKILL')
      between.close()
    }
  })
  for (const later of [false, true]) {
    scene(
      `a second criu restore of the same snapshot, when the first one ${later ? 'runs' : 'is held'}`,
      async (stage) => {
        const { cache, port } = await stage.cache('--timeout', '20')
        const between = await relay(port, { at: 'ready', from: 'target', what: 'stall' })
        const proxy = await stage.proxy(between.port, '--until', 'running')
        const held = ['--action-script', join(stage.target, 'post-restore')]
        const restore = (): Running => stage.there(criu, ['restore', '--stream', '-d', '-D', stage.target, ...held])
        const first = restore()
        await cache.says(/waiting for/)
        const dumping = stage.dump().ended
        await between.happened
        const early = later ? undefined : await restore().ended
        between.mend()
        const dumped = await dumping
        const restored = await first.ended
        const second = early ?? (await restore().ended)
        const where = await settled(stage, 'moves', () => proxy.stderr() + cache.stderr())
        await Promise.all([proxy.stop(), cache.stop()])
        between.close()
        const exit = `criu dump ${dumped.code}; criu restore ${restored.code}; the second: ${second.code}`
        return { ...where, exit, left: leftIn(stage), commands: { proxy, cache } }
      },
    )
  }
}

/** Without a proxy and a cache. */
function streams({ scene }: Matrix): void {
  const piped = async (stage: Stage, line: string): Promise<Seen> => {
    const shell = start('bash', ['-c', line], { env: { PID: String(stage.load.pid) }, cwd: stage.folder })
    const ran = await shell.ended
    const where = await settled(stage, 'stays', () => ran.stderr)
    return { ...where, exit: ran.stdout.toString().trim(), left: leftIn(stage), commands: { shell } }
  }
  scene('dump-to-stdout into restore-from-socket --to-dir: the disk is full', (stage) => {
    mkdirSync(join(stage.folder, 'out'))
    const there =
      'mount -t tmpfs -o size=4m none out && restore-from-socket --from - --to-dir out/images; ' +
      'code=$?; ls -A out; exit $code'
    const line =
      `dump-to-stdout -t $PID | unshare -m sh -c '${there}'; echo dump-to-stdout $((PIPESTATUS[0])), ` +
      `restore-from-socket $((PIPESTATUS[1]))`
    return piped(stage, line)
  })
  scene('dump-to-stdout: its reader leaves', (stage) =>
    piped(stage, 'dump-to-stdout -t $PID | head -c 1000000 >/dev/null; echo dump-to-stdout $((PIPESTATUS[0]))'),
  )
  scene(
    'dump-to-stdout --via: the holder is stopped (SIGSTOP) when it has let the copy go, and goes on later',
    async (stage) => {
      const held = join(stage.folder, 'out')
      const holder = [command('restore-from-socket'), '--from', '-', '-D', held, ...stopAtGo]
      const via = [...stage.host.enter, ...holder].join(' ')
      const args = ['-t', String(stage.load.pid), '-D', stage.source, ...timeout, '--via', via]
      const dump = start('dump-to-stdout', ['-v', ...args])
      // The holder has its stderr, and would keep it from being closed.
      const [code] = (await once(dump.child, 'exit')) as [number | null]
      assert.is(originalOf(stage), 'gone', dump.stderr())
      assert.is(await copyOf(stage), 'runs')
      for (const pid of stopped(held)) process.kill(pid, 'SIGCONT')
      const where = await settled(stage, 'moves', dump.stderr)
      await dump.ended
      return {
        ...where,
        exit: `dump-to-stdout ${code}`,
        left: [...leftIn(stage), ...readdirSync(held).filter((name) => !name.startsWith('stats-'))],
        commands: { shell: dump },
      }
    },
  )
}

const section = 'The ends'
const about = 'One of the two ends breaks or is silent, or somebody else was faster.'

if (typeof real === 'string') console.log(`skipped: ${real}`)
else matrix(test, { section, about, criu, version: real.version }, faults)

test.run()
