/**
 * A file that holds our pid while we run. It appears whole (written under another name, then linked), so that whoever
 * finds it can read it, and of two daemons that start at once only one gets it.
 */
import { closeSync, constants, fstatSync, linkSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { openOwnFile } from '../kernel/own-file.ts'

/**
 * Makes the pidfile; the result removes it. A stale one, of a process that is gone, is replaced. Throws `EXISTS` if that
 * process runs or if the file is not a pidfile, `IO` if it cannot be made.
 */
export function holdPidfile(path: string): () => void {
  const own = `${path}.${process.pid}`
  try {
    rmSync(own, { force: true })
    writeFileSync(own, `${process.pid}\n`, { flag: 'wx', mode: 0o644 })
    while (!linked(own, path)) removeStale(path, own)
  } catch (cause) {
    if (cause instanceof Fault) throw cause
    throw new Fault('IO', `cannot make the pidfile ${path} (${(cause as NodeJS.ErrnoException).code})`, {
      hint: 'is its directory there, and may you write to it?',
      cause,
    })
  } finally {
    rmSync(own, { force: true })
  }
  return () => {
    if (holds(path, process.pid)) rmSync(path, { force: true })
  }
}

function linked(own: string, path: string): boolean {
  try {
    linkSync(own, path)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  }
}

/** Takes the file away under a name of ours and looks again: another daemon may have replaced it meanwhile. */
function removeStale(path: string, own: string): void {
  const pid = holder(path)
  if (pid === undefined) return
  if (runs(pid)) {
    throw new Fault('EXISTS', `process ${pid} runs and holds the pidfile ${path}`, {
      hint: 'stop it, choose another --pidfile, or remove the file if that process is another program',
    })
  }
  const aside = `${own}.stale`
  try {
    renameSync(path, aside)
    if (!holds(aside, pid)) linked(aside, path)
    rmSync(aside, { force: true })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}

function holds(path: string, pid: number): boolean {
  try {
    return holder(path) === pid
  } catch {
    return false
  }
}

/** The pid in the file; undefined if there is no such file. Throws `EXISTS` for what is no pidfile of our own user. */
function holder(path: string): number | undefined {
  let file: number
  try {
    file = openOwnFile(path, constants.O_RDONLY)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  try {
    const text = fstatSync(file).size < 32 ? readFileSync(file, 'utf8') : ''
    const pid = /^(\d{1,10})\n?$/.exec(text)?.[1]
    if (pid !== undefined) return Number(pid)
  } finally {
    closeSync(file)
  }
  throw new Fault('EXISTS', `${path} is in the way and is not a pidfile`, { hint: 'choose another --pidfile' })
}

/** Whether another process has that pid. One that ended and was not waited for (a zombie) does not run. */
function runs(pid: number): boolean {
  if (pid === process.pid) return false
  try {
    process.kill(pid, 0)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false
  }
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return true
  }
}
