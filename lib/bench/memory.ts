/** A process that holds memory of a kind, and knows whether it is whole. */
import { spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'

/** What fills the memory: of no pattern, untouched but for zeros, or English. */
export const kinds = ['random', 'zero', 'text'] as const
export type Kind = (typeof kinds)[number]

export interface Loaded {
  pid: number
  /** Resolves when the process that was started here, not its copy, is gone. */
  gone: Promise<void>
  /**
   * The copy, which has the same number here, compares its memory, and says for how long it stood still at most, in
   * seconds. Throws `DIGEST` where the memory is not what it was.
   */
  verify(): Promise<number>
  kill(): void
}

const LONGEST_MS = 120_000

/** Starts one that holds `bytes` bytes, a multiple of 1 MiB, and writes its log into `folder`. */
export async function startMemory(script: string, bytes: number, kind: Kind, folder: string): Promise<Loaded> {
  const log = join(folder, 'memory.log')
  const mib = bytes / 2 ** 20
  const child = spawn('perl', [script, `${mib}`, kind, log], { cwd: folder, detached: true, stdio: 'ignore' })
  const gone = new Promise<void>((resolve) => void child.once('exit', () => resolve()))
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
  return {
    pid,
    gone,
    async verify() {
      process.kill(pid, 'SIGUSR1')
      const line = await said('all')
      return Number(/[\d.]+$/.exec(line)?.[0])
    },
    kill() {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {}
    },
  }
}
