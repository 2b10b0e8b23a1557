/**
 * The ways to move a process on one host, each from the start of criu dump until criu restore has let the tasks run: ours,
 * and what a user has without us. All of them keep images in memory only.
 */
import { type ChildProcess, execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { Fault } from '../fault.ts'
import { decodeDumpStats } from '../format/stats.ts'
import type { Children } from './children.ts'
import { cpuSeconds, peakBytes } from './machine.ts'

export interface Course {
  criu: string
  /** Of the process that is moved. */
  pid: number
  gone: Promise<void>
  /** On a file system in memory; removed by the caller. */
  folder: string
  /** What it starts is ended by the caller. */
  start: Children['start']
}

/** How our commands are run. */
export interface Commands {
  node: readonly string[]
  scripts: string
  /** `.js` where they are built. */
  suffix: string
}

/** Seconds and bytes; what a contender does not have is missing. */
export interface Figures {
  /** From the start of criu dump until criu restore has let the tasks run. */
  total: number
  /** That CRIU says the tasks were frozen. */
  frozen: number
  proxyCpu?: number
  cacheCpu?: number
  proxyPeak?: number
  cachePeak?: number
}

export interface Contender {
  name: string
  what: string
  /** Why it cannot run here. */
  missing(): string | undefined
  run(course: Course): Promise<Figures>
}

/** Runs a program to its end. */
function ran({ start }: Course, program: string, args: string[], cwd?: string): Promise<void> {
  const done = succeeded(start(program, args, cwd === undefined ? {} : { cwd }), [program, ...args].join(' '))
  // Where another one fails before, nobody waits for this one.
  done.catch(() => {})
  return done
}

function succeeded(child: ChildProcess, what: string): Promise<void> {
  let said = ''
  child.stderr?.on('data', (text: Buffer) => {
    said += String(text)
  })
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code) => {
      if (code === 0) resolve()
      else reject(new Fault('CRIU', `${what} exited with ${code}: ${said.trim().split('\n').slice(-3).join(' / ')}`))
    })
  })
}

/** Waits for the words in what a daemon says on stderr. Returns what the pattern caught. */
function says(child: ChildProcess, pattern: RegExp): Promise<string> {
  let said = ''
  const heard = new Promise<string>((resolve, reject) => {
    child.stderr?.on('data', (text: Buffer) => {
      said += String(text)
      const match = pattern.exec(said)
      if (match !== null) resolve(match[1] ?? '')
    })
    child.once('close', () => reject(new Fault('IO', `a daemon ended: ${said}`)))
  })
  heard.catch(() => {})
  return heard
}

const seconds = (since: number): number => (performance.now() - since) / 1000
const frozenIn = (folder: string): number => decodeDumpStats(readFileSync(join(folder, 'stats-dump'))).frozenTime / 1e6

function make(course: Course, name: string): string {
  const path = join(course.folder, name)
  mkdirSync(path)
  return path
}

const dumpOf = ({ pid }: Course, directory: string): string[] => ['dump', '-t', `${pid}`, '-D', directory]
const restoreOf = (directory: string): string[] => ['restore', '-d', '-D', directory]

/** Restores from a directory what was dumped into another one, since `begun`. */
async function restored(course: Course, source: string, target: string, begun: number): Promise<Figures> {
  await course.gone
  await ran(course, course.criu, restoreOf(target), target)
  return { total: seconds(begun), frozen: frozenIn(source) }
}

const tmpfs: Contender = {
  name: 'tmpfs',
  what: 'criu dump to tmpfs, criu restore from it; nothing is moved',
  missing: () => undefined,
  async run(course) {
    const images = make(course, 'images')
    const begun = performance.now()
    await ran(course, course.criu, dumpOf(course, images), images)
    return restored(course, images, images, begun)
  },
}

const pageServer: Contender = {
  name: 'page-server',
  what: 'criu dump --page-server, criu page-server to tmpfs, criu restore from it',
  missing: () => undefined,
  async run(course) {
    const [source, target] = [make(course, 'source'), make(course, 'target')]
    const port = await freePort()
    const listen = ['--address', '127.0.0.1', '--port', `${port}`, '--status-fd', '2']
    const server = course.start(course.criu, ['page-server', '-D', target, ...listen])
    const served = succeeded(server, 'criu page-server')
    served.catch(() => {})
    await Promise.race([served, new Promise((resolve) => server.stderr?.once('data', resolve))])
    const begun = performance.now()
    const to = ['--page-server', '--address', '127.0.0.1', '--port', `${port}`]
    await ran(course, course.criu, [...dumpOf(course, source), ...to], source)
    await served
    for (const name of readdirSync(source)) copyFileSync(join(source, name), join(target, name))
    return restored(course, source, target, begun)
  },
}

const tarSocat: Contender = {
  name: 'tar-socat',
  what: 'criu dump to tmpfs, tar | socat over TCP to another tmpfs, criu restore from it',
  missing: () => (has('socat') ? undefined : 'socat is not installed'),
  async run(course) {
    const [source, target] = [make(course, 'source'), make(course, 'target')]
    const port = await freePort()
    const begun = performance.now()
    await ran(course, course.criu, dumpOf(course, source), source)
    const listener = `TCP-LISTEN:${port},bind=127.0.0.1,reuseaddr`
    const taking = ran(course, 'socat', ['-u', listener, `EXEC:tar -x -C ${target}`])
    const sender = `TCP:127.0.0.1:${port},retry=50,interval=0.02`
    await ran(course, 'socat', ['-u', `EXEC:tar -c -C ${source} .`, sender])
    await taking
    return restored(course, source, target, begun)
  },
}

interface Variant {
  env?: Record<string, string>
  proxy?: readonly string[]
}

function ours(name: string, what: string, commands: Commands, { env = {}, proxy: options = [] }: Variant): Contender {
  return {
    name,
    what,
    missing: () => undefined,
    async run(course) {
      const [source, target] = [make(course, 'source'), make(course, 'target')]
      const [node = 'node', ...execArgs] = commands.node
      const daemon = (command: string, args: string[]): ChildProcess =>
        course.start(node, [...execArgs, join(commands.scripts, `${command}${commands.suffix}`), ...args], {
          env: { ...process.env, ...env },
        })
      const cache = daemon('cache', ['--port', '0', '-D', target])
      const port = await says(cache, /listening on 127\.0\.0\.1:(\d+)/)
      const proxy = daemon('proxy', ['--port', port, '-D', source, ...options])
      await says(proxy, /listening on (.*)/)
      const handed = says(proxy, /handed over/)
      const before = { proxy: cpuSeconds(proxy.pid), cache: cpuSeconds(cache.pid) }
      const begun = performance.now()
      await ran(
        course,
        course.criu,
        [...dumpOf(course, source), '--stream', '--action-script', join(source, 'post-dump')],
        source,
      )
      await course.gone
      await ran(course, course.criu, [...restoreOf(target), '--stream'], target)
      const total = seconds(begun)
      await handed
      return {
        total,
        frozen: frozenIn(source),
        proxyCpu: cpuSeconds(proxy.pid) - before.proxy,
        cacheCpu: cpuSeconds(cache.pid) - before.cache,
        proxyPeak: peakBytes(proxy.pid),
        cachePeak: peakBytes(cache.pid),
      }
    },
  }
}

function has(program: string): boolean {
  try {
    execFileSync('sh', ['-c', `command -v ${program}`], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

async function freePort(): Promise<number> {
  const server = createServer()
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0))
    })
  })
}

/** In the order of the table; the first two are what ours is compared with. */
export function contenders(commands: Commands): Contender[] {
  const buffers = "the same through Node's own streams (FERRY_NO_SPLICE=1)"
  return [
    tmpfs,
    pageServer,
    tarSocat,
    ours('ferry', 'criu dump --stream, proxy and cache over TCP, criu restore --stream', commands, {}),
    ours('ferry-unchecked', 'the same with --no-checksum: pages are passed on by reference', commands, {
      proxy: ['--no-checksum'],
    }),
    ours('ferry-buffers', buffers, commands, { env: { FERRY_NO_SPLICE: '1' } }),
  ]
}
