/** Real programs that check themselves, to be dumped and restored. Each writes `COUNT ok` lines into a log. */
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs'
import net from 'node:net'
import { join } from 'node:path'
import { nft, redisServer } from './programs.ts'
import { classes, eventually, fixtures } from './run.ts'

export interface Load {
  name: string
  /** It has an inet socket, which CRIU 4.1 cannot dump on kernels from 6.16. */
  sockets: boolean
  /** Why it cannot run here, if it cannot. */
  missing(): string | undefined
  start(folder: string): Promise<Started>
}

export interface Started {
  pid: number
  /** Resolves when the process that we started, not its restored copy, is gone and reaped. */
  gone: Promise<void>
  /** Throws unless the restored program, now with number `pid` here, is whole: its memory, its output, its sockets. */
  verify(pid?: number): Promise<void>
  /** Throws unless the memory of the copy with number `pid` is whole; its count may go on from an older line. */
  whole(pid?: number): Promise<void>
  /** Throws unless the program that we started still runs and makes progress. */
  runsOn(): Promise<void>
  /** Ends the program, or its copy on this host, with all its children. */
  kill(): void
}

const log = (folder: string): string => join(folder, 'load.log')
const lines = (folder: string): string[] =>
  existsSync(log(folder)) ? readFileSync(log(folder), 'utf8').trim().split('\n') : []

function tree(pid: number): number[] {
  const path = `/proc/${pid}/task/${pid}/children`
  const children = existsSync(path) ? readFileSync(path, 'utf8').trim().split(' ').filter(Boolean) : []
  return [pid, ...children.flatMap((child) => tree(Number(child)))]
}

function spawnLoad(
  folder: string,
  command: string,
  args: string[],
  stdin: 'ignore' | 'pipe' = 'ignore',
): { pid: number; gone: Promise<void> } {
  const output = openSync(join(folder, 'load.out'), 'a')
  const child = spawn(command, args, { cwd: folder, detached: true, stdio: [stdin, output, output] })
  closeSync(output)
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  return { pid: child.pid as number, gone }
}

/** Waits for `many` more counts, all good, that go on from the last one. */
async function goesOn(folder: string, many: number): Promise<void> {
  const counts = (): string[] => lines(folder).filter((line) => /^\d+ /.test(line))
  const before = counts().length
  await eventually(() => counts().length >= before + many || undefined, `the count in ${folder}`)
  counts().forEach((line, index) => {
    if (line !== `${index + 1} ok`) throw new Error(`line ${index + 1} of the count is: ${line}`)
  })
}

async function ask(port: number, question: string): Promise<string> {
  const socket = net.connect(port, '127.0.0.1')
  socket.write(question) // whoever is asked closes: redis drops answers to a client that has
  let answer = ''
  for await (const chunk of socket) answer += String(chunk)
  return answer
}

/** The Node.js that is dumped: the one that runs all tests, where another one runs this test. */
const nodeForLoads = process.env.FERRY_LOAD_NODE ?? process.execPath
const RINGS =
  "const of = (fd) => `/proc/self/fdinfo/${fd}`; fs.readdirSync('/proc/self/fd').some((fd) => " +
  "fs.existsSync(of(fd)) && fs.readFileSync(of(fd), 'latin1').includes('SqMask'))"

/** Node.js 24 always has an io_uring, which CRIU cannot dump. */
function noNode(): string | undefined {
  const { stdout } = spawnSync(nodeForLoads, ['-p', RINGS], { encoding: 'utf8' })
  return stdout === 'true\n' ? 'CRIU cannot dump the io_uring of this Node.js' : undefined
}

interface Counting {
  name: string
  sockets?: boolean
  command: string
  args(folder: string): string[]
  stdin?: 'pipe'
  missing?: () => string | undefined
  check?: (folder: string, pid: number, port: number) => Promise<void>
}

/** A program that writes `ready PID [port N]` and then counts into its log. */
function counting({ name, sockets = false, command, args, stdin, missing, check }: Counting): Load {
  return {
    name,
    sockets,
    missing: missing ?? (() => (spawnSync(command, ['--version']).error ? `no ${command} on this machine` : undefined)),
    async start(folder) {
      const { pid, gone } = spawnLoad(folder, command, args(folder), stdin)
      await eventually(
        () => lines(folder).filter((line) => line.endsWith(' ok')).length > 3 || undefined,
        `${name}'s start`,
      )
      const port = Number(/port (\d+)/.exec(lines(folder)[0] ?? '')?.[1])
      return {
        pid,
        gone,
        async verify(now = pid) {
          await goesOn(folder, 5)
          await check?.(folder, now, port)
        },
        async whole(now = pid) {
          await check?.(folder, now, port)
        },
        runsOn: () => goesOn(folder, 5),
        kill() {
          for (const member of tree(pid)) spawnSync('kill', ['-9', String(member)])
        },
      }
    },
  }
}

/**
 * `mib` MiB of a pattern, all of it compared after the restore. With a `pipe` its stdin is one of Node's, a UNIX socket
 * of ours: CRIU has written all pages when it finds that it cannot dump that.
 */
export function patternLoad(mib: number, stdin?: 'pipe'): Load {
  return counting({
    ...(stdin && { stdin }),
    name: `a pattern of ${mib} MiB`,
    command: 'perl',
    args: (folder) => [join(fixtures, 'pattern.pl'), String(mib), log(folder)],
    check: checksAll(mib),
  })
}

/** Has a program compare all of its `mib` MiB. */
function checksAll(mib: number) {
  return async (folder: string, pid: number): Promise<void> => {
    const checks = (): string[] => lines(folder).filter((line) => line.startsWith('all '))
    const before = checks().length
    process.kill(pid, 'SIGUSR1')
    // A copy may write into a log that has such a line already: only a new one counts.
    await eventually(() => checks().length > before || undefined, 'the check of all memory')
    if (checks().at(-1) !== `all ${mib} MiB ok`) throw new Error(`its memory: ${checks().at(-1)}`)
  }
}

/** Private huge pages (MAP_HUGETLB), of 2 MiB each: the kernel must have as many free ones for it and for its copy. */
export function hugePagesLoad(pages: number): Load {
  return counting({
    name: `${pages} private huge pages`,
    command: systemPython(),
    args: (folder) => [join(fixtures, 'huge.py'), String(pages), log(folder)],
    check: checksAll(2 * pages),
  })
}

const RULE = 'tcp dport 80 drop'
const RULES = `table inet t { chain c { type filter hook input priority 0; policy accept; ${RULE}; }; }`

/** A process in a network namespace of its own with one nft rule, which must be there afterwards. */
export const firewalled: Load = counting({
  name: 'a network namespace with an nft rule',
  command: 'unshare',
  missing: () => (existsSync(nft) ? undefined : 'nft could not be fetched'),
  args: (folder) => {
    const pattern = `exec perl ${join(fixtures, 'pattern.pl')} 2 ${log(folder)}`
    return ['-n', 'sh', '-c', `ip link set lo up && ${nft} '${RULES}' && ${pattern}`]
  },
  async check(_folder, pid) {
    const { stdout } = spawnSync('nsenter', ['-n', '-t', String(pid), nft, 'list', 'ruleset'], { encoding: 'utf8' })
    if (!stdout.includes(RULE)) throw new Error(`the rules of ${pid}: ${stdout}`)
  },
})

/** `mib` MiB in which no two pages are equal: the same in every process of this load. */
export function distinctLoad(mib: number): Load {
  return counting({
    name: `${mib} MiB of distinct pages`,
    command: systemPython(),
    args: (folder) => [join(fixtures, 'distinct.py'), String(mib), log(folder)],
    check: checksAll(mib),
  })
}

/**
 * `mib` MiB, and `shared` MiB that are shared with a child (anonymous), of which `percent` per cent of the pages are
 * written again and again.
 */
export function dirtyingLoad(mib: number, percent: number, shared = 0): Load {
  const more = shared === 0 ? '' : `, and ${shared} MiB that are shared`
  return counting({
    name: `${mib} MiB, ${percent} % of them written again and again${more}`,
    command: systemPython(),
    args: (folder) => [join(fixtures, 'dirty.py'), String(mib), String(percent), log(folder), String(shared)],
    check: checksAll(mib + shared),
  })
}

const redis: Load = {
  name: 'redis with 20,000 keys',
  sockets: true,
  missing: () => (existsSync(redisServer) ? undefined : 'redis-server could not be fetched'),
  async start(folder) {
    const socket = net.createServer().listen(0, '127.0.0.1')
    await new Promise((resolve) => socket.once('listening', resolve))
    const { port } = socket.address() as net.AddressInfo
    await new Promise((resolve) => socket.close(resolve))
    const options = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']
    const { pid, gone } = spawnLoad(folder, redisServer, options)
    const alive = async (): Promise<string> => {
      for (let time = 0; time < 100; time++) {
        const answer = await ask(port, 'PING\r\nQUIT\r\n').catch(() => '')
        if (answer.startsWith('+PONG')) return answer
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
      throw new Error('redis does not answer')
    }
    const value = (n: number): string => `value-${n}-${'x'.repeat(n % 200)}`
    await alive()
    const sets = Array.from({ length: 20_000 }, (_, n) => `SET key:${n} ${value(n)}\r\n`).join('')
    await ask(port, `${sets}QUIT\r\n`)
    const holds = async (): Promise<void> => {
      await alive()
      const gets = Array.from({ length: 20_000 }, (_, n) => `GET key:${n}\r\n`).join('')
      const answer = await ask(port, `DBSIZE\r\n${gets}QUIT\r\n`)
      const expected = Array.from({ length: 20_000 }, (_, n) => `$${value(n).length}\r\n${value(n)}\r\n`).join('')
      if (answer !== `:20000\r\n${expected}+OK\r\n`) throw new Error(`redis lost data: ${answer.slice(0, 80)}`)
    }
    return {
      pid,
      gone,
      verify: holds,
      whole: holds,
      async runsOn() {
        await alive()
      },
      kill() {
        spawnSync('kill', ['-9', String(pid)])
      },
    }
  },
}

function tells(wanted: RegExp) {
  return async (_folder: string, _pid: number, port: number): Promise<void> => {
    const answer = await ask(port, 'GET / HTTP/1.0\r\n\r\n')
    if (!wanted.test(answer)) throw new Error(`the listener answers: ${answer}`)
  }
}

function systemPython(): string {
  return existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3'
}

/** Java compiles a file that it is given, which takes it minutes on a slow machine: there it has been done before. */
function javaProgram(): string[] {
  return existsSync(classes) ? ['-cp', classes, 'Heap'] : [join(fixtures, 'Heap.java')]
}

/** OpenJDK with a heap of that many strings, and `mib` MiB of arrays that do not change. */
export function javaLoad(options: string[], strings: number, mib: number): Load {
  return counting({
    name: 'OpenJDK with a listener',
    sockets: true,
    command: 'java',
    args: (folder) => [
      ...['-XX:-UsePerfData', ...options, ...javaProgram(), log(folder), String(strings), String(mib)],
    ],
    missing: () => (spawnSync('javac', ['-version']).error ? 'no JDK on this machine' : undefined),
    check: tells(new RegExp(`count \\d+, all ${mib} MiB ok`)),
  })
}

export const loads: Load[] = [
  patternLoad(64),
  counting({
    name: 'a tree with threads, pipes and shared memory (python3)',
    command: systemPython(),
    args: (folder) => [join(fixtures, 'tree.py'), log(folder)],
  }),
  counting({
    name: 'node with a worker thread and a listener',
    sockets: true,
    command: nodeForLoads,
    missing: noNode,
    args: (folder) => [join(fixtures, 'heap.mjs'), log(folder)],
    check: tells(/count \d+/),
  }),
  javaLoad(['-Xmx256m'], 200_000, 0),
  redis,
  patternLoad(1024),
]
