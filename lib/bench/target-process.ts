/** A process that holds memory of a kind, and knows whether it is whole. */
import { spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { descendants } from '../kernel/process.ts'

/** What fills the memory: of no pattern, untouched but for zeros, English, or the objects of a node. */
export const kinds = ['random', 'zero', 'text', 'heap'] as const
export type Kind = (typeof kinds)[number]

export type Loaded = Awaited<ReturnType<typeof startMemory>>

const LONGEST_MS = 120_000

interface MemoryOptions {
  /** A multiple of 1 MiB. */
  bytes: number
  kind: Kind
  /** Processes more, its children, of 64 KiB each; not of a heap. */
  children?: number
  /** Where it writes its log. */
  folder: string
  /** Where the programs are. */
  fixtures?: string
}

/** The programs are part of the repository, and not of what is installed. */
const FIXTURES = join(root(), 'fixtures')

function root(): string {
  for (let folder = import.meta.dirname; ; folder = dirname(folder)) {
    if (existsSync(join(folder, 'package.json')) || folder === dirname(folder)) return folder
  }
}

/** Starts one. */
export async function startMemory(options: MemoryOptions) {
  const { bytes, kind, children = 0, folder, fixtures = FIXTURES } = options
  const log = join(folder, 'memory.log')
  const mib = bytes / 2 ** 20
  // CRIU cannot dump the io_uring of Node.js 24: the tests name another one.
  const node = process.env.FERRY_LOAD_NODE ?? process.execPath
  const [program, ...args] =
    kind === 'heap'
      ? [node, `--max-old-space-size=${2 * mib + 256}`, join(fixtures, 'memory.mjs'), `${mib}`, log]
      : ['perl', join(fixtures, 'memory.pl'), `${mib}`, kind, log, `${children}`]
  const child = spawn(program, args, { cwd: folder, detached: true, stdio: 'ignore' })
  const ended = new Promise<void>((resolve) => void child.once('exit', () => resolve()))
  const pid = child.pid as number
  const said = async (words: string): Promise<string> => {
    for (const begun = performance.now(); performance.now() - begun < LONGEST_MS; await setTimeout(20)) {
      const line = existsSync(log) ? (readFileSync(log, 'utf8').trim().split('\n').at(-1) ?? '') : ''
      if (line.startsWith(words)) return line
      if (line.startsWith('WRONG')) throw new Fault('DIGEST', `the memory of the restored process is wrong: ${line}`)
    }
    throw new Fault('TIMEOUT', `the process with the memory never said "${words}"`)
  }
  await said('ready')
  const family = descendants(pid)
  // Somebody else takes note of the end of orphans.
  const gone = ended.then(async () => {
    while (family.some((member) => existsSync(`/proc/${member}`))) await setTimeout(1)
  })
  return {
    pid,
    /** Resolves when the processes that were started here, not their copies, are gone, and their numbers free. */
    gone,
    /**
     * The copy, which has the same number here or the one that is given, compares its memory, and says for how long it
     * stood still at most, in seconds. Throws `DIGEST` where the memory is not what it was.
     */
    async verify(copy = pid): Promise<number> {
      process.kill(copy, 'SIGUSR1')
      const line = await said('all')
      return Number(/[\d.]+$/.exec(line)?.[0])
    },
    kill(): void {
      for (const member of [pid, ...family]) {
        try {
          process.kill(member, 'SIGKILL')
        } catch {}
      }
    },
  }
}
