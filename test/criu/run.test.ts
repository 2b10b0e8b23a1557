import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  type CriuRun,
  checkCriuOptions,
  explainFailure,
  findCriu,
  frozenMs,
  leavingOption,
} from '../../lib/criu/run.ts'
import { Fault } from '../../lib/fault.ts'
import { throwsFault } from '../expect.ts'
import { temporary } from '../support/run.ts'

const test = suite('criu/run')

test('options that leave the tasks are known in every spelling that getopt takes', () => {
  for (const option of [
    ...['-R', '-s', '-lR', '-Rv', '-Rv4', '-jls', '-dRt'],
    ...['--leave-running', '--leave-stopped', '--leave-r', '--leave-runn', '--leave-s', '--leave-stop'],
  ]) {
    assert.is(leavingOption(['--tcp-established', option, '-v4']), option)
  }
})

test('options that are ours are refused in every beginning that getopt takes for them', () => {
  for (const option of ['--images-dir=/x', '--im=/x', '--pag', '--lazy', '--la', '--aut', '-D/x', '-t1']) {
    throwsFault('USAGE', () => checkCriuOptions([option]), option)
  }
  checkCriuOptions(['--tcp-established', '--shell-job', '--ext-unix-sk', '--', '-v4', '-o', 'x'])
})

test('what only looks like one is none', () => {
  for (const words of [
    // CRIU: -v and -x take the rest of their word, the others that or the next word.
    ...[['-vR'], ['-xs'], ['-oR.log'], ['-o', '-R'], ['-lo', '-s'], ['-j'], ['-v4'], ['Rs'], ['']],
    // Two options begin so, and criu refuses it.
    ...[['--leave'], ['--leave-'], ['--le']],
    ['--leave-running-not'],
  ]) {
    assert.is(leavingOption(words), undefined, words.join(' '))
  }
  assert.is(leavingOption(['-o', '-R', '-R']), '-R')
  assert.is(leavingOption(['-v', '-R']), '-R')
})

test('a criu that others can change is not started, whoever named it', () => {
  const { path, remove } = temporary()
  const folder = join(path, 'bin')
  mkdirSync(folder)
  const criu = join(folder, 'criu')
  writeFileSync(criu, '#!/bin/sh\n', { mode: 0o755 })
  symlinkSync('bin/criu', join(path, 'wrapper'))
  const { FERRY_CRIU } = process.env
  try {
    delete process.env.FERRY_CRIU
    for (const name of [criu, join(path, 'wrapper')]) {
      assert.is(findCriu(name), name)
      for (const part of [criu, folder]) {
        chmodSync(part, 0o775)
        const fault = throwsFault('CRIU', () => findCriu(name), name)
        assert.is(fault.message, `${name} is not started: ${part} can be written by its group`)
        assert.match(fault.hint ?? '', /^chmod go-w .*--criu PATH$/)
        process.env.FERRY_CRIU = name
        throwsFault('CRIU', () => findCriu())
        delete process.env.FERRY_CRIU
        chmodSync(part, 0o755)
      }
    }
  } finally {
    if (FERRY_CRIU !== undefined) process.env.FERRY_CRIU = FERRY_CRIU
    remove()
  }
})

test('what is found in the current directory is what is started', () => {
  const { path, remove } = temporary()
  writeFileSync(join(path, 'criu'), '#!/bin/sh\n', { mode: 0o755 })
  const here = process.cwd()
  process.chdir(path)
  assert.is(findCriu('criu'), join(path, 'criu'))
  assert.is(findCriu(join('..', basename(path), 'criu')), join(dirname(path), basename(path), 'criu'))
  process.chdir(here)
  remove()
})

test("a broken stream is explained by criu's error, another failure by itself; a criu that stays ends", async () => {
  const [broken, lost] = [new Fault('FAILED_DUMP', 'it broke off'), new Fault('LINK', 'it is gone')]
  const cause = new Fault('CRIU', 'no')
  let killed = 0
  const criu = (done: Promise<void>): CriuRun => ({ pid: 1, done, kill: () => void killed++ })
  const failed = criu(Promise.reject(cause))
  assert.is(await explainFailure(broken, failed, 10_000), cause)
  assert.is(await explainFailure(lost, failed, 10_000), lost)
  assert.is(await explainFailure(broken, criu(Promise.resolve()), 10_000), broken)
  assert.is(killed, 0)
  const waiting = setInterval(() => {}, 1000)
  assert.is(await explainFailure(broken, criu(new Promise(() => {})), 1), broken)
  clearInterval(waiting)
  assert.is(killed, 1)
})

test('how long the tasks were frozen, in milliseconds; unknown without a whole file', () => {
  const { path, remove } = temporary()
  assert.is(frozenMs(path), undefined)
  const stats = Buffer.from('405910550633095713000000' + '0a1108ac0210f0930918072005' + '2864' + '9a060161', 'hex')
  writeFileSync(join(path, 'stats-dump'), stats)
  assert.is(frozenMs(path), 150)
  writeFileSync(join(path, 'stats-dump'), stats.subarray(0, 10))
  assert.is(frozenMs(path), undefined)
  remove()
})

test.run()
