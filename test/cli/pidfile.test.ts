import { spawnSync } from 'node:child_process'
import {
  chownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { holdPidfile } from '../../lib/cli/pidfile.ts'
import { check } from '../../lib/kernel/fd.ts'
import { mkfifo } from '../../lib/kernel/libc.ts'
import { throwsFault } from '../expect.ts'
import { temporary } from '../support/run.ts'

const test = suite<{ path: string; folder: string; remove: () => void }>('cli/pidfile')

test.before.each((context) => {
  const { path, remove } = temporary()
  Object.assign(context, { path: join(path, 'daemon.pid'), folder: path, remove })
})
test.after.each(({ remove }) => remove())

const own = `${process.pid}\n`
/** A pid that was in use and is free. */
const gone = String(spawnSync('true').pid)

test('it holds the pid, may be read by others, is the only file, and goes', ({ path, folder }) => {
  const release = holdPidfile(path)
  assert.is(readFileSync(path, 'utf8'), own)
  assert.is(statSync(path).mode & 0o777, 0o644 & ~process.umask())
  assert.equal(readdirSync(folder), ['daemon.pid'])
  release()
  assert.equal(readdirSync(folder), [])
  release()
})

test('a stale one is replaced: of a process that is gone, or that had our pid', ({ path, folder }) => {
  for (const text of [`${gone}\n`, gone, own]) {
    writeFileSync(path, text)
    const release = holdPidfile(path)
    assert.is(readFileSync(path, 'utf8'), own, text)
    release()
    assert.equal(readdirSync(folder), [])
  }
})

test('one of a process that runs is refused and stays', ({ path, folder }) => {
  writeFileSync(path, `${process.ppid}\n`)
  const fault = throwsFault('EXISTS', () => holdPidfile(path))
  assert.is(fault.message, `process ${process.ppid} runs and holds the pidfile ${path}`)
  assert.match(fault.hint ?? '', /--pidfile/)
  assert.is(readFileSync(path, 'utf8'), `${process.ppid}\n`)
  assert.equal(readdirSync(folder), ['daemon.pid'])
})

test('what is not a pidfile is refused and stays', ({ path, folder }) => {
  for (const text of ['', '\n', 'precious', '-1', '12 13', '4102444800', '1'.repeat(40)]) {
    writeFileSync(path, text)
    assert.match(throwsFault('EXISTS', () => holdPidfile(path), text).message, /is not a pidfile/)
    assert.is(readFileSync(path, 'utf8'), text)
  }
  const other = join(folder, 'directory')
  mkdirSync(other)
  throwsFault('EXISTS', () => holdPidfile(other))
  const link = join(folder, 'link')
  symlinkSync(join(folder, 'nowhere'), link)
  throwsFault('EXISTS', () => holdPidfile(link))
  assert.equal(readdirSync(folder).sort(), ['daemon.pid', 'directory', 'link'])
})

test('a FIFO, and the pidfile of another user, are in the way and stay', ({ path, folder }) => {
  check(mkfifo(path, 0o600), 'mkfifo')
  throwsFault('EXISTS', () => holdPidfile(path))
  const his = join(folder, 'his')
  writeFileSync(his, `${gone}\n`)
  if (process.geteuid?.() === 0) {
    chownSync(his, 65534, 0)
    assert.match(throwsFault('EXISTS', () => holdPidfile(his)).message, /belongs to user 65534/)
    assert.is(readFileSync(his, 'utf8'), `${gone}\n`)
  }
  assert.equal(readdirSync(folder).sort(), ['daemon.pid', 'his'])
})

test('at the end what somebody has put in its place stays', ({ path }) => {
  const release = holdPidfile(path)
  rmSync(path)
  symlinkSync('nowhere', path)
  release()
  assert.ok(lstatSync(path).isSymbolicLink())
})

test('one that another daemon has taken over is not removed', ({ path }) => {
  const release = holdPidfile(path)
  writeFileSync(path, `${process.ppid}\n`)
  release()
  assert.is(readFileSync(path, 'utf8'), `${process.ppid}\n`)
})

test('no directory: a fault with a hint', ({ folder }) => {
  const fault = throwsFault('IO', () => holdPidfile(join(folder, 'none', 'daemon.pid')))
  assert.match(fault.message, /cannot make the pidfile .* \(ENOENT\)/)
  assert.ok(fault.hint)
})

test.run()
