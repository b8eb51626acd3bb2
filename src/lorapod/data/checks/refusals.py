"""Whether a text declines to be a caption: what a model says in place of one.

For English, and for how an apology begins in a few other languages. A caption that quotes a refusal (“a sign reads: I
can't”) is none.
"""

from __future__ import annotations

import re

_IMAGE = r"(?:image|picture|photo(?:graph)?|video(?: clip)?|clip|footage|screenshot)"
_I_AM = r"(?:i['’]m|i am)(?: (?:really|very|truly|so|deeply|just|only))*"
_CANNOT = r"(?:cannot|can['’]?t|can not|could ?n['’]?t|could not|won['’]?t|will not|must not)"
_TELL = (
    r"(?:identify|assist|help|describe|describing|provide|continue|fulfil|caption|generate|create|comment|comply|engage"
    r"|view|see|process|analy[sz]e)"
)
_GIVE = r"(?:provide|upload|attach|share|send|re-?upload)"
_SEEMS = r"(?:it (?:seems|looks|appears)(?: like| that| as if)? )?"
_REFUSALS = (
    # sorry
    rf"{_I_AM} (?:sorry|afraid|unable|programmed|designed|prohibited|going to have to|here to help|having (?:trouble"
    rf"|difficulty))\b",
    rf"{_I_AM} not (?:able|comfortable|allowed|permitted|going)\b",
    r"sorry(?:,| but|!|\.|$)",
    r"my apologies\b|(?:i )?apolog(?:i[sz]e|ies)\b",
    rf"unfortunately,? (?:i\b|(?:this|the) {_IMAGE} {_CANNOT}|(?:this|the) (?:content|request)\b)",
    # what it is
    rf"{_I_AM} (?:an?|your) (?:[\w-]+ ){{0,3}}(?:ai|assistant|language model)\b",
    r"as an? (?:[\w-]+ ){0,4}(?:ai|assistant|model)\b[^.]{0,30}?,? i\b",
    r"(?:(?:hello|hi)[!,.]? )?how (?:can|may) i (?:help|assist)\b",
    # what it will not do
    rf"i {_CANNOT}\b",
    rf"unable to {_TELL}\b",
    r"i(?:['’]d| would) (?:rather|prefer)(?: to)? not\b|i(?:['’]d| would) prefer not\b",
    r"i must\b[^.]{0,30}\b(?:decline|refuse|avoid)",
    r"i do(?:n['’]?t| not) (?:feel comfortable|have the ability)\b",
    r"it(?:['’]s| is) (?:not (?:appropriate|possible|okay)|inappropriate|against)\b",
    # nothing to look at
    rf"i (?:do|did)(?:n['’]?t| not) see (?:an?|any|the) {_IMAGE}",
    rf"i (?:would )?need (?:to see|you to {_GIVE}|(?:an?|the) {_IMAGE})\b",
    rf"(?:(?:could|can|would) you (?:please |kindly )?|please ){_GIVE}\b",
    rf"{_SEEMS}(?:there(?:['’]s| is| was) )?no {_IMAGE} (?:(?:was|is|has been) )?"
    r"(?:provided|attached|uploaded|included|available(?! of)|in your message)",
    rf"{_SEEMS}you (?:have|did)(?:n['’]?t| not) {_GIVE}",
    rf"(?:this|the) {_IMAGE} (?:{_CANNOT}|did not|didn['’]?t|failed to) (?:be )?(?:load|display|open|upload|{_TELL})",
    # a filter's words
    r"(?:the |this |your )?(?:request|prompt|response|content|answer) (?:was |is |has been )?"
    r"(?:blocked|declined|denied|refused|filtered)\b",
    r"content (?:policy|filter|warning)\b",
    r"\W*(?:refused|redacted|blocked|censored|declined)\W*$",
    # the same in other languages, as a model answers where the request or the picture's text is in one of them
    r"es tut mir leid|ich kann (?:dieses|das|dabei|ihnen|dir)\b|(?:lo siento|lamento|desculpe|lamento|mi dispiace"
    r"|scusa)\b"
    r"|(?:je suis )?désolée?\b|je ne peux pas\b|no puedo\b|non posso\b|não posso\b|извините|к сожалению|простите"
    r"|(?:很)?抱歉|对不起|我(?:无法|不能)|申し訳|すみません|죄송",
)
_REFUSAL = re.compile(
    rf"^(?:(?:well|sure|but|hi|hello|hmm)[,!.] (?:but )?)?(?:{'|'.join(f'(?:{each})' for each in _REFUSALS)})",
    re.IGNORECASE,
)
_REFUSAL_LATER = re.compile(
    rf"(?:[.!?;]|,(?: but| and| so| which| as)?|\b(?:but|so|that))\s+(?:i {_CANNOT}|i(?:['’]m| am) (?:unable"
    rf"|not able) to) {_TELL}\b"
    r"|\b(?:i['’]m|i am) not comfortable\b"
    r"|\b(?:violat(?:es?|ing)|(?:goes|go) against) (?:my|our|the) (?:[\w-]+ )?(?:guidelines|polic(?:y|ies)"
    r"|programming|terms)\b",
    re.IGNORECASE,
)
_SHORT = 400
"""Letters of a text within which a refusal may also stand later than at its start."""


def refuses(text: str) -> bool:
    """Whether a text declines to be a caption."""
    start = text.strip().lstrip("\"'“*[(")
    return bool(_REFUSAL.match(start)) or (len(start) < _SHORT and bool(_REFUSAL_LATER.search(start)))
