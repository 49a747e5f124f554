"""How people tell a model to forget what it was told, by language."""

# ruff: noqa: RUF001 - letters of other alphabets are meant as such

from __future__ import annotations

import re
from typing import Dict, Tuple

__all__ = ["OVERRIDE"]

_SPACED = r"(?:[^\w.!?]{1,4}\w{1,16}){0,4}[^\w.!?]{1,4}"  # up to four words of the same sentence
_UNSPACED = r"[^\n。！？]{0,10}"  # the same for languages that put no blanks between words

_OVERRIDES: Dict[str, Tuple[str, Tuple[str, str, str]]] = {
    # By language: what may stand between, and the words of the phrase in the order of the language.
    "English": (
        _SPACED,
        (
            (
                "ignor(?:e|es|ed|ing)|disregard(?:s|ed|ing)?|forget(?:ting)?|overrid(?:e|es|ing)|bypass(?:es|ing)?|"
                "discard|neglect|do not (?:follow|obey)|don't (?:follow|obey)|stop (?:following|obeying)|"
                "pay no attention to"
            ),
            (
                "previous|prior|preceding|earlier|above|foregoing|former|original|initial|existing|your|system|"
                "everything|(?:you|were) (?:told|given)|all"
            ),
            (
                "instructions?|prompts?|directions?|directives?|guidelines?|guidance|commands?|orders?|system message|"
                "constraints|programming|above|before|you (?:were|have been) (?:told|given)"
            ),
        ),
    ),
    "German": (
        _SPACED,
        (
            "ignorier(?:e|en|t)?|vergiss|vergessen sie|vergesst|missachte[nt]?|beachte[nt]?|befolge[nt]?|verwirf",
            (
                "vorherigen?|vorigen?|bisherigen?|obigen?|vorangehenden|vorangegangenen|fr(?:ü|ue)heren|alle[ns]?|"
                "deine[nr]?|nicht"
            ),
            "anweisung(?:en)?|instruktion(?:en)?|befehle?n?|vorgaben?|anleitung(?:en)?|systemprompt|prompts?",
        ),
    ),
    "French": (
        _SPACED,
        (
            "ignore[rz]?|oublie[rz]?|n[ée]glige[rz]?|ne (?:tiens|tenez|suis|suivez) (?:pas|plus)|fais abstraction",
            "instructions?|consignes?|directives?|ordres?|commandes?|indications?|invites?",
            "pr[ée]c[ée]dente?s?|ant[ée]rieure?s?|ci-dessus|plus haut|initiale?s?|syst[èe]me|re[çc]ue?s",
        ),
    ),
    "Spanish": (
        _SPACED,
        (
            "ignor(?:a|e|ad|en|ar)|olvid(?:a|e|ad|en|ar)|descart(?:a|e|ar)|haz caso omiso|no sigas|no hagas caso",
            "instrucci(?:ones|ón)|indicaciones|[óo]rdenes|directrices|directivas|comandos",
            "anterior(?:es)?|previas?|precedentes|de arriba|del sistema|iniciales|recibidas|que te",
        ),
    ),
    "Portuguese": (
        _SPACED,
        (
            "ignor(?:a|e|em|ar)|esque[çc]a|desconsider(?:a|e|ar)|descart(?:e|ar)",
            "instru(?:ções|coes|ção)|orienta(?:ções|coes)|ordens|diretrizes|comandos",
            "anterior(?:es)?|pr[ée]vias?|acima|do sistema|iniciais",
        ),
    ),
    "Italian": (
        _SPACED,
        (
            "ignor(?:a|i|ate|are)|dimentic(?:a|hi|ate|are)|trascura(?:te|re)?|non seguire",
            "istruzion[ei]|indicazioni|ordini|direttive|comandi",
            "precedent[ei]|di sopra|sopra|iniziali|di sistema|ricevut[ei]",
        ),
    ),
    "Dutch": (
        _SPACED,
        (
            "negeer|negeren|vergeet",
            "vorige|eerdere|voorgaande|bovenstaande|alle|je",
            "instructies?|aanwijzingen|opdrachten|bevelen|richtlijnen|prompts?",
        ),
    ),
    "Polish": (
        _SPACED,
        (
            "(?:z)?ignoruj(?:cie)?|zapomnij(?:cie)?|pomi[ńn]",
            "poprzedni(?:e|ch)|wcze[śs]niejsz(?:e|ych)|powy[żz]sz(?:e|ych)|wszystkie|wszystkich",
            "instrukcj[ei]|polece(?:nia|ń)|rozkaz(?:y|ów)|wytyczn(?:e|ych)",
        ),
    ),
    "Russian": (
        _SPACED,
        (
            "(?:про)?игнориру(?:й|йте)|забудь(?:те)?|не обращай(?:те)? внимания",
            "предыдущи[ехм]|прежни[ехм]|вышеуказанные|вс[её]|прошлые|ранее",
            "инструкци[июйя]|указани[яей]|команды|приказы|правила|распоряжения",
        ),
    ),
    "Ukrainian": (
        _SPACED,
        (
            "(?:про)?ігноруй(?:те)?|забудь(?:те)?",
            "попередні|всі|усі|вищенаведені",
            "інструкції|вказівки|команди|накази",
        ),
    ),
    "Turkish": (
        _SPACED,
        (
            "[öo]nceki|yukar[ıi]daki|t[üu]m",
            "talimat\\w{0,8}|komut\\w{0,8}|y[öo]nerge\\w{0,8}|emir\\w{0,8}",
            "yok say|g[öo]rmezden gel|unut|dikkate alma|g[öo]z ard[ıi] et",
        ),
    ),
    "Arabic": (
        _SPACED,
        ("تجاهل|تجاهلي|انس|إنس", "التعليمات|الأوامر|التوجيهات|تعليمات", "السابقة|أعلاه|النظام|السابق"),
    ),
    "Hindi": (
        r"[^\n।]{0,16}",
        ("पिछल[ेी]|उपरोक्त|पहले|सभी|ऊपर", "निर्देश|आदेश|अनुदेश", "अनदेखा|नज़रअंदाज|नजरअंदाज|भूल|उपेक्षा"),
    ),
    "Chinese": (
        _UNSPACED,
        (
            "忽略|忽视|忽視|无视|無視|不要理会|不要理會|不用理会|忘记|忘記|忘掉|抛弃",
            "之前|以前|先前|上面|以上|此前|前面|上述|所有|全部|系统|系統",
            "指令|指示|说明|說明|命令|提示|规则|規則|要求|设定",
        ),
    ),
    "Japanese": (
        _UNSPACED,
        (
            "以前|これまで|上記|先ほど|今まで|前の|すべて|全て|従来",
            "指示|命令|指令|プロンプト|ルール|設定",
            "無視|忘れ|従わない|破棄",
        ),
    ),
    "Korean": (
        _UNSPACED,
        ("이전|위의|위에|앞의|앞선|지금까지|모든|기존", "지시|명령|지침|프롬프트|규칙", "무시|잊어|잊고|따르지"),
    ),
}

OVERRIDE = re.compile(
    "|".join(between.join(f"(?:{words})" for words in phrase) for between, phrase in _OVERRIDES.values())
)
"""Finds such a phrase in lower-case text. It looks at no more than some hundred characters from where one begins."""
