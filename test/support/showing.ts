/** Commands that are shown as they run, in a folder of their own that is shown as /run. */
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { commandLine } from '../../lib/kernel/process.ts'
import { type Running, start, temporary } from './run.ts'

export interface Showing {
  folder: string
  say(text: string): void
  /** Starts what the line says, with that program in the place of its first word, and shows both and what it says. */
  begin(line: string, program?: string): Running
  /**
   * The same to its end; throws unless that is 0. A criu is heard only if it fails: it mentions what does not matter.
   */
  finish(line: string, program?: string): Promise<void>
  /**
   * The processes, in whatever pid namespace, that have this word of our folder on their command line; zombies have
   * none.
   */
  processes(word: string): number[]
}

/** Plays `body` within the limit, and ends all that it began, also at SIGINT and SIGTERM. Returns an exit code. */
export async function showing(
  name: string,
  limitMs: number,
  body: (showing: Showing) => Promise<void>,
): Promise<number> {
  const { path: folder, remove } = temporary()
  const running: Running[] = []
  const say = (text: string): void => void process.stdout.write(`${text.replaceAll(folder, '/run').trimEnd()}\n`)
  const processes = (word: string): number[] =>
    readdirSync('/proc')
      .map(Number)
      .filter((pid) => commandLine(pid).some((part) => part.startsWith(folder) && part.endsWith(word)))
  const run = (line: string, program: string | undefined): Running => {
    const text = line.replaceAll(/(?<= )\/run(?=\/)/g, folder)
    const [first = '', ...args] = / (\||&&) /.test(line) ? ['bash', '-o', 'pipefail', '-c', text] : text.split(' ')
    const started = start(program ?? first, args, { cwd: folder })
    running.push(started)
    return started
  }
  const play = body({
    folder,
    say,
    begin(line, program) {
      say(`$ ${line} &`)
      const started = run(line, program)
      started.child.stderr?.on('data', (text: Buffer) => say(text.toString()))
      return started
    },
    async finish(line, program) {
      say(`$ ${line}`)
      const { code, stdout, stderr } = await run(line, program).ended
      process.stdout.write(stdout)
      if (stderr !== '' && (code !== 0 || program === undefined)) say(stderr)
      if (code !== 0) throw new Error(`exit code ${code}`)
    },
    processes,
  })
  const early = new Promise<never>((_, reject) => {
    setTimeout(() => reject(new Error(`not done after ${limitMs / 1000} s`)), limitMs).unref()
    for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => reject(new Error(`stopped by ${signal}`)))
  })
  try {
    await Promise.race([play, early])
    return 0
  } catch (error) {
    say(`${name}: error: ${(error as Error).message}`)
    return 1
  } finally {
    for (const { child } of running) child.kill('SIGKILL')
    for (const pid of processes('')) spawnSync('kill', ['-9', String(pid)])
    remove()
  }
}
