import {
  closeSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Logger, openLog, READY, STARTER, starterFd } from '../../lib/cli/logger.ts'
import { check, makePipe } from '../../lib/kernel/fd.ts'
import { fcntl, mkfifo } from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { throwsFault } from '../expect.ts'
import { readToEnd } from '../support/fake-criu.ts'
import { root, run, temporary } from '../support/run.ts'

const test = suite('cli/logger')

test('a log is appended to, each line with the time, and readable by its owner only', () => {
  const { path, remove } = temporary()
  const log = join(path, 'log')
  const logger = new Logger()
  logger.logTo(log)
  logger.say('cache: one\ncache: two\n')
  assert.is(statSync(log).mode & 0o777, 0o600)
  const stamp = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`
  assert.match(readFileSync(log, 'utf8'), new RegExp(`^${stamp} cache: one\n${stamp} cache: two\n$`))
  writeFileSync(log, '')
  logger.say('three\n')
  assert.match(readFileSync(log, 'utf8'), new RegExp(`^${stamp} three\n$`), 'after the log was cut')
  remove()
})

test('a log that cannot be opened', () => {
  const fault = throwsFault('IO', () => openLog('/nowhere/log'))
  assert.is(fault.message, 'cannot write to the log /nowhere/log (ENOENT)')
  assert.ok(fault.hint)
})

test('a log that is no file of ours is refused at once, and what it leads to stays as it is', () => {
  const { path, remove } = temporary()
  const at = (name: string): string => join(path, name)
  writeFileSync(at('precious'), 'x')
  linkSync(at('precious'), at('second'))
  symlinkSync('precious', at('link'))
  symlinkSync('made', at('dangling'))
  check(mkfifo(at('fifo'), 0o600), 'mkfifo')
  mkdirSync(at('directory'))
  for (const [name, reason] of [
    ['link', 'is a link'],
    ['dangling', 'is a link'],
    ['second', 'has another name, too'],
    ['fifo', 'is no regular file'],
    ['directory', 'is no regular file'],
  ] as const) {
    const fault = throwsFault('EXISTS', () => openLog(at(name)), name)
    assert.is(fault.message, `${at(name)} ${reason}`)
    assert.ok(fault.hint)
  }
  throwsFault('EXISTS', () => openLog('/dev/full'))
  assert.is(readFileSync(at('precious'), 'utf8'), 'x')
  assert.not(existsSync(at('made')))
  remove()
})

test('a log on a full disk loses its lines and stops nobody', async () => {
  const { path, remove } = temporary()
  const code = `import('./lib/cli/logger.ts').then(({ Logger }) => {
    const logger = new Logger()
    logger.logTo(${JSON.stringify(join(path, 'log'))})
    logger.say('lost\\n')
    process.exit(7)
  })`
  // A limit on files is a disk that is full for this process alone.
  const line = `trap '' XFSZ; ulimit -f 0; exec "$0" --import tsx -e "$1"`
  const ran = await run('bash', ['-c', line, process.execPath, code], { cwd: root })
  assert.is(ran.code, 7, ran.stderr)
  assert.is(readFileSync(join(path, 'log'), 'utf8'), '')
  remove()
})

test('the starter hears messages until it hears a zero byte', async () => {
  const [out, into] = makePipe()
  check(fcntl(into, 2, 0), 'fcntl')
  const logger = new Logger(into)
  assert.ok(logger.detached)
  logger.say('one\n')
  logger.ready()
  logger.ready()
  assert.is((await readToEnd(out)).toString(), `one\n${READY}`)
  closeFd(out)
})

test('a starter is a descriptor that was given, and its number is not passed on', () => {
  assert.is(starterFd(), undefined)
  assert.not(new Logger().detached)
  const file = openSync('/dev/null', 'w')
  process.env[STARTER] = String(file)
  assert.is(starterFd(), file)
  assert.is(process.env[STARTER], undefined)
  closeSync(file)
  for (const wrong of ['', 'abc', '-1', '1', '3.5', String(file)]) {
    process.env[STARTER] = wrong
    assert.match(throwsFault('USAGE', starterFd, wrong).message, STARTER)
    assert.is(process.env[STARTER], undefined)
  }
})

test.run()
