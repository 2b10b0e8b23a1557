/**
 * A file that holds our pid while we run. It is written under another name and then linked: so nobody reads half of it,
 * and if two daemons start at the same time only one of them gets it.
 */
import { closeSync, constants, fstatSync, linkSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { openOwnFile } from '../kernel/own-file.ts'
import { isRunning } from '../kernel/process.ts'

/**
 * Makes the pidfile `path`; the result removes it. The pidfile of a process that is gone is replaced. Throws `EXISTS`
 * if its process runs or if `path` is not a pidfile, `IO` if it cannot be made.
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

/** Renames the file to a name of ours and reads it again: another daemon may have replaced it meanwhile. */
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

/** The pid in the file; undefined if there is none. Throws `EXISTS` if it is not a pidfile of our own user. */
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
    const pid = /^(\d{1,9})\n?$/.exec(text)?.[1]
    if (pid !== undefined) return Number(pid)
  } finally {
    closeSync(file)
  }
  throw new Fault('EXISTS', `${path} is in the way and is not a pidfile`, { hint: 'choose another --pidfile' })
}

/** Whether another process has that pid and runs; a zombie does not. */
function runs(pid: number): boolean {
  if (pid === process.pid || !isRunning(pid)) return false
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return true
  }
}
