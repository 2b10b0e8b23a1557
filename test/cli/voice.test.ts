import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { openLog, openVoice, READY, STARTER } from '../../lib/cli/voice.ts'
import { check, makePipe } from '../../lib/kernel/fd.ts'
import { fcntl } from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { throwsFault } from '../expect.ts'
import { readToEnd } from '../support/fake-criu.ts'
import { temporary } from '../support/run.ts'

const test = suite('cli/voice')

test('a log is appended to, each line with the time, and readable by its owner only', () => {
  const { path, remove } = temporary()
  const log = join(path, 'log')
  const voice = openVoice()
  voice.logTo(log)
  voice.say('cache: one\ncache: two\n')
  assert.is(statSync(log).mode & 0o777, 0o600)
  const stamp = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`
  assert.match(readFileSync(log, 'utf8'), new RegExp(`^${stamp} cache: one\n${stamp} cache: two\n$`))
  writeFileSync(log, '')
  voice.say('three\n')
  assert.match(readFileSync(log, 'utf8'), new RegExp(`^${stamp} three\n$`), 'after the log was cut')
  remove()
})

test('a log that cannot be opened, and one on a full disk', () => {
  const fault = throwsFault('IO', () => openLog('/nowhere/log'))
  assert.is(fault.message, 'cannot write to the log /nowhere/log (ENOENT)')
  assert.ok(fault.hint)
  const voice = openVoice()
  voice.logTo('/dev/full')
  voice.say('lost\n')
})

test('the starter hears messages until it hears a zero byte', async () => {
  const [out, into] = makePipe()
  check(fcntl(into, 2, 0), 'fcntl')
  process.env[STARTER] = String(into)
  const voice = openVoice()
  assert.ok(voice.detached)
  assert.is(process.env[STARTER], undefined, 'programs that we start must not inherit it')
  voice.say('one\n')
  voice.ready()
  voice.ready()
  assert.is((await readToEnd(out)).toString(), `one\n${READY}`)
  closeFd(out)
})

test.run()
