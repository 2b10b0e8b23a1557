/**
 * Honest hand-overs beside peers that are silent, slow, refused or send damage: every one succeeds, and what the
 * daemons took for the others comes back. For ten minutes, or as many seconds as FERRY_SOAK_S says.
 *
 * How long a process stands still is told and not asserted: it depends on the machine, and on what else it does.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { startMemory } from '../../lib/bench/target-process.ts'
import { CAPTURE_SOCKET } from '../../lib/criu/capture.ts'
import { snapshotId } from '../../lib/format/names.ts'
import { formatSize } from '../../lib/size.ts'
import { impatient, within } from '../expect.ts'
import { bytesOf } from '../stream/snapshots.ts'
import { attack, sendAll, snapshotStream } from '../support/attackers.ts'
import { real } from '../support/criu.ts'
import { type Host, startHost } from '../support/host.ts'
import { eventually, type Running, run, start, temporary } from '../support/run.ts'
import { command } from '../support/stage.ts'

const test = suite('real-criu/soak')

const soakMs = Number(process.env.FERRY_SOAK_S ?? 600) * 1000
/** Hand-overs alone, of which the first two are slower: each proxy rehearses before its first. */
const ALONE = 12
const WARM_UP = 2
/** Between two of them: other tests want the processors too. */
const PAUSE_MS = 250
/** Longer than anything here takes on a machine that is busy. */
const STEP_MS = 120_000
/** Memory and descriptors are back. */
const BACK_MS = 90_000
const MIB = 2 ** 20
const LOAD_BYTES = 4 * MIB
const BAIT_BYTES = 16 * MIB

interface Daemon {
  name: string
  run: Running
  pid: number
}

interface Proxy extends Daemon {
  directory: string
  pagePort: string
}

interface Stage {
  host: Host
  folder: string
  port: string
  cache: Daemon
  /** One that waits until the snapshot is sealed, one that waits until the copy could run. */
  proxies: [Proxy, Proxy]
}

/** Attackers hold more than this in turn: they must give way. */
const cacheOptions = ['--restore', '--timeout', '20', '--max-memory', '256M']

async function staged(body: (stage: Stage) => Promise<void>): Promise<void> {
  const { path: folder, remove } = temporary()
  const host = await startHost()
  const running: Running[] = []
  const begin = (program: string, args: string[]): Running => {
    const daemon = impatient(start(program, args, { cwd: folder, limitMs: 2 * soakMs + 10 * STEP_MS }))
    running.push(daemon)
    return daemon
  }
  const startProxy = async (port: string, until: string): Promise<Proxy> => {
    const directory = join(folder, until)
    const pages = ['--page-server-port', '0', '--until', until]
    const withUs = ['--pdeathsig', 'TERM', command('proxy')]
    const daemon = begin('setpriv', [...withUs, '--port', port, '-D', directory, ...pages])
    const [, pagePort = ''] = await daemon.says(/listening on 127\.0\.0\.1:(\d+)/)
    return { name: `the proxy until ${until}`, run: daemon, pid: daemon.child.pid as number, directory, pagePort }
  }
  try {
    const [enter = '', ...entering] = host.enter
    const pidfile = join(folder, 'cache.pid')
    const where = ['--port', '0', '-D', join(folder, 'target'), '--pidfile', pidfile]
    const cache = begin(enter, [...entering, command('cache'), ...where, ...cacheOptions])
    const [, port = ''] = await cache.says(/listening on 127\.0\.0\.1:(\d+)/)
    await cache.says(/streamer-serve/)
    const cachePid = host.outerPid(Number(readFileSync(pidfile, 'utf8')))
    const proxies: [Proxy, Proxy] = [await startProxy(port, 'sealed'), await startProxy(port, 'running')]
    await body({ host, folder, port, cache: { name: 'the cache', run: cache, pid: cachePid }, proxies })
  } finally {
    await host.stop()
    for (const { child } of running) child.kill('SIGKILL')
    await Promise.all(running.map(({ ended }) => ended))
    remove()
  }
}

/** How often a daemon has said that. */
function said({ run }: Daemon, words: string): number {
  return run.stderr().split(words).length - 1
}

/** Moves a process of its own. Returns for how long it stood still, in seconds. */
async function handOver(criu: string, stage: Stage, number: number): Promise<number> {
  const { host, cache, proxies } = stage
  const { directory } = proxies[number % 2] as Proxy
  const folder = join(stage.folder, `load-${number}`)
  mkdirSync(folder)
  const restored = said(cache, 'restored in')
  const load = await startMemory({ bytes: LOAD_BYTES, kind: 'random', folder })
  try {
    const script = ['--action-script', join(directory, 'post-dump')]
    const dumped = await run(criu, ['dump', '--stream', '-t', String(load.pid), '-D', directory, ...script])
    assert.is(dumped.code, 0, `hand-over ${number}: ${dumped.stderr}\n${tail(stage)}`)
    await within(load.gone, 'the end of the source', STEP_MS)
    await eventually(() => said(cache, 'restored in') > restored || undefined, 'a restore', STEP_MS).catch((late) => {
      throw new Error(`hand-over ${number}: ${(late as Error).message}\n${tail(stage)}`)
    })
    const copy = host.outerPid(load.pid)
    const stillS = await load.verify(copy)
    process.kill(copy, 'SIGKILL')
    await eventually(() => !isThere(copy) || undefined, 'the end of the copy', STEP_MS)
    rmSync(folder, { recursive: true })
    return stillS
  } catch (error) {
    load.kill()
    throw error
  }
}

/** The last that they have said, for a failure. */
function tail({ cache, proxies }: Stage): string {
  return [cache, ...proxies].map(({ name, run }) => `${name}:\n${run.stderr().slice(-3000)}`).join('\n')
}

function isThere(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

interface Size {
  fds: number
  /** Resident memory, bytes. */
  rss: number
}

function sizeOf({ pid }: Daemon): Size {
  const kib = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return { fds: readdirSync(`/proc/${pid}/fd`).length, rss: Number(kib) * 1024 }
}

/** What it has when it does nothing: its links stay for a moment. */
async function sizeAtRest(daemon: Daemon): Promise<Size> {
  for (let [before, same] = [-1, 0]; same < 4; await setTimeout(500)) {
    const { fds } = sizeOf(daemon)
    same = fds === before ? same + 1 : 0
    before = fds
  }
  return sizeOf(daemon)
}

/** Waits until it has what it had. */
async function isBack(daemon: Daemon, before: Size): Promise<Size> {
  const most = before.rss + Math.max(before.rss / 10, 16 * MIB)
  let size = sizeOf(daemon)
  for (const end = performance.now() + BACK_MS; performance.now() < end; await setTimeout(500)) {
    size = sizeOf(daemon)
    if (size.fds === before.fds && size.rss <= most) break
  }
  assert.is(size.fds, before.fds, `descriptors of ${daemon.name}`)
  assert.ok(size.rss <= most, `the memory of ${daemon.name}: ${formatSize(before.rss)} -> ${formatSize(size.rss)}`)
  return size
}

function figuresOf(seconds: number[]): { median: number; slowest: number; text: string } {
  const sorted = seconds.toSorted((a, b) => a - b)
  const [median = 0, slowest = 0] = [sorted[Math.floor(sorted.length / 2)], sorted.at(-1)]
  return { median, slowest, text: `median ${median.toFixed(3)} s, slowest ${slowest.toFixed(3)} s` }
}

function tellFigures(alone: number[], beside: number[], seconds: number, made: Map<string, number>): void {
  const [first, second] = [figuresOf(alone), figuresOf(beside)]
  const times = (than: number): string => `${(second.slowest / than).toFixed(1)} times`
  const ratio = `${times(first.slowest)} the slowest alone and ${times(first.median)} the median alone`
  const stoodStill = `${alone.length} alone: ${first.text}; ${beside.length} beside attackers: ${second.text}, ${ratio}`
  const kinds = [...made].map(([name, count]) => `${name} ${count}`).join(', ')
  // uvu has begun a line.
  console.log(`\nfigures: processes stood still, ${stoodStill}; connections in ${seconds.toFixed()} s: ${kinds}`)
}

async function soak(criu: string, stage: Stage): Promise<void> {
  const { cache, proxies } = stage
  const daemons: Daemon[] = [cache, ...proxies]
  const bait = snapshotId('bait')
  await sendAll(stage.port, snapshotStream(bait, undefined, bytesOf('bait', BAIT_BYTES)))
  await cache.run.says(/snapshot bait sealed/)

  // Each has opened what it keeps for good.
  for (const { pagePort } of proxies) await sendAll(pagePort, Buffer.alloc(0))
  const alone: number[] = []
  for (let number = 0; number < ALONE; number++) alone.push(await handOver(criu, stage, number))
  const before = await Promise.all(daemons.map(sizeAtRest))
  const linesOf = ({ run }: Daemon): number => run.stderr().split('\n').length
  const lines = daemons.map(linesOf)

  const begun = performance.now()
  const attackers = attack(
    {
      port: stage.port,
      bait,
      proxies: proxies.map(({ directory, pagePort }) => ({ socket: join(directory, CAPTURE_SOCKET), pagePort })),
    },
    soakMs + 2 * STEP_MS,
  )
  const beside: number[] = []
  let ended: Awaited<ReturnType<typeof attackers.stop>>
  try {
    while (performance.now() - begun < soakMs) {
      beside.push(await handOver(criu, stage, ALONE + beside.length))
      await setTimeout(PAUSE_MS)
    }
  } finally {
    ended = await attackers.stop()
  }
  const seconds = (performance.now() - begun) / 1000
  tellFigures(alone.slice(WARM_UP), beside, seconds, ended.made)
  assert.ok(ended.toldOff > 0, 'another user was told that he may not speak')

  daemons.forEach((daemon, index) => {
    // Each hand-over may write what one did alone.
    const each = (lines[index] as number) / ALONE
    const kinds = attackers.kinds[daemon === cache ? 'cache' : 'proxy']
    const most = Math.ceil(seconds * kinds + each * beside.length)
    const grown = linesOf(daemon) - (lines[index] as number)
    console.log(`figures: ${daemon.name} has written ${grown} lines, at most ${most} are in order`)
    assert.ok(grown <= most, tail(stage))
  })
  const sizes = await Promise.all(daemons.map((daemon, index) => isBack(daemon, before[index] as Size)))
  sizes.forEach(({ fds, rss }, index) => {
    const { name } = daemons[index] as Daemon
    console.log(
      `figures: ${name}: ${fds} descriptors, ${formatSize((before[index] as Size).rss)} -> ${formatSize(rss)}`,
    )
  })
  const all = alone.length + beside.length
  assert.is(said(cache, 'restored in'), all)
  // Those, the bait, and nothing of an attacker's.
  assert.is(said(cache, ' sealed: '), all + 1)
  // A conversation that may go on over another link outlives the last one for a while.
  const nothing = /snapshots: 1, chains: 0, memory: .*, links: 0, silent: 0, held for peers: 0 B, restores that wait: 0/
  for (const end = performance.now() + BACK_MS; !nothing.test(cache.run.stderr()); await setTimeout(1000)) {
    assert.ok(performance.now() < end, `it still has something in hand:\n${tail(stage)}`)
    process.kill(cache.pid, 'SIGUSR1')
  }
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else {
  const { path } = real
  test(`hand-overs for ${soakMs / 1000} s beside attackers: all succeed, and memory and descriptors come back`, () =>
    staged((stage) => soak(path, stage)))
}

test.run()
