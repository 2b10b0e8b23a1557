/**
 * The fault matrix, with the real CRIU: after each fault, where is the process, how many copies run, what did every
 * command say, what is left. The rule: one live copy, or a stopped one that is named, and nothing left over.
 *
 * RELIABILITY.md is made from what was seen: `FERRY_RELIABILITY=write npm test -- faults`. Without that the columns that do not
 * depend on chance are compared with it.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { real } from '../support/criu.ts'
import { patternLoad } from '../support/loads.ts'
import { type Relay, relay, type Trouble } from '../support/relay.ts'
import { eventually, type Running, root, run } from '../support/run.ts'
import { command, copyOf, originalOf, type Stage, staged } from '../support/stage.ts'

const test = suite('faults')
const load = patternLoad(8)
const document = join(root, 'RELIABILITY.md')

/** What was seen after a fault. */
interface Row {
  fault: string
  original: string
  copy: string
  exit: string
  left: string
  says: string
}

const rows: Row[] = []

interface Scene extends Stage {
  cacheRun: Running
  proxyRun: Running
  cachePort: string
  relay: Relay
}

interface Plan {
  cache?: string[]
  proxy?: string[]
  trouble?: Trouble
  dump?: string[]
  /** What happens meanwhile; the dump runs. */
  act?: (scene: Scene, dumping: Running) => Promise<void>
  /** Where the process must be afterwards. */
  end: 'stays' | 'moves' | 'held'
  /** What may lie there afterwards, by name. */
  leaves?: RegExp
  /** Before the daemons are stopped. */
  after?: (scene: Scene) => Promise<void>
}

const timeout = ['--timeout', '4']

/** Plays a hand-over until running, to a cache that restores, with one fault in it. */
function row(fault: string, criu: string, plan: Plan): void {
  test(fault, () =>
    staged(criu, load, async (stage) => {
      const { cache, port } = await stage.cache(...(plan.cache ?? ['--restore']), ...timeout)
      const between = await relay(port, plan.trouble)
      const proxy = await stage.proxy(between.port, '--until', 'running', ...timeout, ...(plan.proxy ?? []))
      const scene = { ...stage, cacheRun: cache, proxyRun: proxy, cachePort: port, relay: between }
      const dumping = stage.dump(...(plan.dump ?? []))
      try {
        await plan.act?.(scene, dumping)
        const dumped = await dumping.ended
        const goal = { stays: 'runs none', moves: 'gone runs', held: 'gone held' }[plan.end]
        const seen = async (): Promise<string> => `${originalOf(stage)} ${await copyOf(stage)}`
        // First what is owed, for it may still change something.
        const owes = (): boolean => leftIn(stage).some((name) => name.endsWith('.owed'))
        if (plan.leaves?.test('x.owed') !== true) await eventually(() => !owes() || undefined, 'the verdict', 20_000)
        let now = ''
        for (let time = 0; time < 20 && now !== goal; time++) now = await seen()
        assert.is(now, goal, `${proxy.stderr()}\n${cache.stderr()}\n${dumped.stderr}`)
        if (plan.end === 'stays') await stage.stayed()
        if (plan.end === 'moves') await stage.arrived()
        await plan.after?.(scene)
        await Promise.all([proxy.stop(), cache.stop()])
        const left = leftIn(stage).filter((name) => plan.leaves?.test(name) !== true)
        assert.equal(left, [], 'nothing is left')
        const [original = '', copy = ''] = now.split(' ')
        add(fault, { original, copy, exit: `criu dump ${dumped.code}`, left: leftIn(stage) }, { proxy, cache })
      } finally {
        between.close()
      }
    }),
  )
}

function add(
  fault: string,
  { original, copy, exit, left }: { original: string; copy: string; exit: string; left: string[] },
  commands: Record<string, Running>,
): void {
  const says = Object.entries(commands).flatMap(([name, running]) =>
    running
      .stderr()
      .split('\n')
      .filter((line) => / failed: | error: |handed over|is held until/.test(line))
      .map((line) => `${name}: ${line.replace(/^[\w-]+: (error: )?/, '')}`.replaceAll(/\d{8}T\d{6}-\S+?-\w+/g, 'ID')),
  )
  const plain = says.map((line) => line.replaceAll(/\/\S*ferry-test-\w+/g, 'DIR').replaceAll('|', '/'))
  const names = left.map((name) => name.replace(/\d{8}T\d{6}-\S+?-\w+/, 'ID').replace(/^\d+\./, 'PID.'))
  rows.push({ fault, original, copy, exit, left: names.join(' ') || '-', says: plain.join('<br>') })
}

/** CRIU's own statistics and the log of the load are not ours. */
function leftIn({ source, target, folder }: Stage): string[] {
  const list = (path: string): string[] => (existsSync(path) ? readdirSync(path) : [])
  const work =
    folder === '' ? [] : list(folder).filter((name) => !/^(load\.|source$|target$|dump\.|out$|cache\.pid$)/.test(name))
  return [...list(source), ...list(target), ...work].filter((name) => !/^stats-|\.log$/.test(name))
}

const stall = (at: Trouble['at'], from: Trouble['from'] = 'source'): Trouble => ({
  at,
  from,
  what: 'stall',
  later: 'stall',
})

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

function faults(criu: string): void {
  row('no fault', criu, { end: 'moves' })

  row('criu dump is killed in the middle', criu, {
    trouble: stall('imageEnd'),
    async act({ relay: { happened } }, dumping) {
      await happened
      dumping.child.kill('SIGKILL')
    },
    end: 'stays',
  })
  row('the dump fails by itself', criu, { dump: ['--action-script', '/bin/false'], end: 'stays' })
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    row(`the proxy gets ${signal} in the middle of a dump`, criu, {
      trouble: stall('imageEnd'),
      async act({ relay: { happened }, proxyRun }) {
        await happened
        await proxyRun.stop(signal)
      },
      end: 'stays',
      ...(signal === 'SIGKILL' && { leaves: /^(streamer-capture\.sock|post-dump|\d+\.post-dump\.(held|lock))$/ }),
    })
    row(`the proxy gets ${signal} when the target is ready`, criu, {
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
      ...(signal === 'SIGKILL' && { leaves: /^\d+\.post-dump\.(held|lock)$/ }),
    })
  }

  for (const at of ['snapshot', 'handOver', 'image', 'data', 'imageEnd', 'snapshotEnd'] as const) {
    row(`the link is cut before ${at}`, criu, { trouble: { at, from: 'source', what: 'cut before' }, end: 'moves' })
  }
  row('the link is cut after snapshotEnd', criu, {
    trouble: { at: 'snapshotEnd', from: 'source', what: 'cut after' },
    end: 'moves',
  })
  for (const at of ['hello', 'ack', 'sealed', 'ready'] as const) {
    row(`the link is cut before ${at}`, criu, { trouble: { at, from: 'target', what: 'cut before' }, end: 'moves' })
  }
  row('the link is cut before imageEnd and stays so', criu, {
    trouble: { at: 'imageEnd', from: 'source', what: 'cut before', later: 'refuse' },
    end: 'stays',
  })
  row('the link is cut after ready', criu, {
    trouble: { at: 'ready', from: 'target', what: 'cut after' },
    end: 'moves',
  })
  row('the link is cut before the verdict', criu, {
    trouble: { at: 'verdict', from: 'source', what: 'cut before' },
    end: 'moves',
  })
  row('the link is cut before the answer to the verdict', criu, {
    trouble: { at: 'fate', from: 'target', what: 'cut before' },
    end: 'moves',
  })
  row('the link is cut before the verdict and stays so: the copy is held until it is told by hand', criu, {
    trouble: { at: 'verdict', from: 'source', what: 'cut before', later: 'refuse' },
    async act({ cacheRun }) {
      await cacheRun.says(/is held until its source says/)
    },
    end: 'held',
    async after(scene) {
      const [, id = ''] = await scene.cacheRun.says(/--let-run (\S+),/)
      const told = await run('cache', ['-D', scene.target, '--let-run', id])
      assert.is(told.code, 0, told.stderr)
      await scene.arrived()
    },
    leaves: /\.owed$/,
  })
  row('the link is cut before the verdict, and mended later', criu, {
    trouble: { at: 'verdict', from: 'source', what: 'cut before', later: 'refuse' },
    async act({ cacheRun, relay: { mend } }) {
      await cacheRun.says(/is held until its source says/)
      mend()
    },
    end: 'moves',
  })

  for (const at of ['snapshot', 'handOver', 'image', 'data', 'imageEnd', 'snapshotEnd'] as const) {
    row(`a bit flips in ${at}`, criu, { trouble: { at, from: 'source', what: 'flip' }, end: 'stays' })
  }
  for (const at of ['hello', 'ack', 'sealed', 'ready'] as const) {
    row(`a bit flips in ${at}`, criu, { trouble: { at, from: 'target', what: 'flip' }, end: 'stays' })
  }
  row('a bit flips in the verdict', criu, { trouble: { at: 'verdict', from: 'source', what: 'flip' }, end: 'moves' })
  row('a bit flips in the answer to the verdict', criu, {
    trouble: { at: 'fate', from: 'target', what: 'flip' },
    end: 'moves',
  })

  row('the link is silent in the middle of a dump', criu, { trouble: stall('data'), end: 'stays' })
  // A new link works again.
  for (const at of ['sealed', 'ready'] as const) {
    row(`the link is silent before ${at}`, criu, { trouble: { at, from: 'target', what: 'stall' }, end: 'moves' })
  }
  row('the link is silent before the verdict', criu, {
    trouble: { at: 'verdict', from: 'source', what: 'stall' },
    end: 'moves',
  })
  row('the link is silent before the answer to the verdict', criu, {
    trouble: { at: 'fate', from: 'target', what: 'stall' },
    end: 'moves',
  })

  row('the cache is killed in the middle of a dump', criu, {
    trouble: { at: 'imageEnd', nth: 3, from: 'source', what: 'cut before', later: 'refuse' },
    async act({ cacheRun, cachePid, relay: { happened } }) {
      await happened
      process.kill(cachePid(), 'SIGKILL')
      await cacheRun.ended
    },
    end: 'stays',
    leaves: /^(streamer-serve\.sock|cache\.sock|post-restore)$|\.owed$/,
  })
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    row(`the cache gets ${signal} while it holds, and another one is started`, criu, {
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
    row(`the cache gets ${signal} after the source let go, and another one is started`, criu, {
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
  for (let part = 0; part < 20; part++) {
    // Spread over the 29 MiB that cross, and never the same.
    const at = 100 + Math.floor(((part + Math.random()) / 20) * 28 * 2 ** 20)
    row(`the link is cut at a random byte, ${part * 5} to ${part * 5 + 5} % of the way`, criu, {
      trouble: { at, from: 'source', what: 'cut before' },
      end: 'moves',
    })
  }
  row('the memory of the cache is full', criu, { cache: ['--restore', '--max-memory', '8M'], end: 'stays' })
  row('the restore is refused by CRIU: a file is missing', criu, {
    trouble: { at: 'snapshotEnd', from: 'source', what: 'stall' },
    async act({ relay: { happened, mend }, folder }) {
      await happened
      await run('mv', [join(folder, 'load.out'), join(folder, 'load.gone')])
      mend()
    },
    end: 'stays',
  })
  row('the restore is killed', criu, {
    cache: ['--restore', '--', '--action-script', join(root, 'test', 'support', 'kill-criu.sh')],
    end: 'stays',
  })
}

const heading = `# Reliability

What was seen when things broke, with the real CRIU. This page is written by \`test/criu/faults.test.ts\`, which plays every row in each
run of the tests: a process that checks its memory is dumped by \`criu dump --stream\` with the action script of the
proxy, \`proxy --until running\` hands it over to \`cache --restore\` in other pid and mount namespaces, and one thing breaks. "here" is the
process at the source, "there" its copy on the target; ID stands for the name of a snapshot. In every row one copy
lives, or a stopped one is named, and its memory was whole.

`

function write(version: string): void {
  const table = rows.map((r) => `| ${[r.fault, r.original, r.copy, r.exit, r.left, r.says].join(' | ')} |`)
  const head = '| fault | here | there | exit code | left over | what the commands said |\n|---|---|---|---|---|---|'
  const made = `Made with CRIU ${version} on Linux ${release()}, Node ${process.versions.node}, on ${new Date().toISOString().slice(0, 10)}.\n`
  writeFileSync(document, `${heading}${head}\n${table.join('\n')}\n\n${made}`)
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else {
  faults(real.path)
  const { version } = real
  test('the table in RELIABILITY.md is what was seen', () => {
    if (process.env.FERRY_RELIABILITY === 'write') write(version)
    const lines = readFileSync(document, 'utf8').split('\n')
    for (const r of rows) {
      const start = `| ${[r.fault, r.original, r.copy, r.exit, r.left].join(' | ')} |`
      assert.ok(
        lines.some((line) => line.startsWith(start)),
        `not in RELIABILITY.md: ${start}`,
      )
    }
    assert.is(lines.filter((line) => line.startsWith('| ')).length, rows.length + 1)
  })
}

test.run()
